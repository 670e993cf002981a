import os, shutil, sys
import numpy as np, pytest, tifffile
from conftest import contents
from refocus_nbdev.io.images import MicroscopeImage, write_image

@pytest.fixture
def refocus(in_process):
    "A run is quicker with the small model"
    def run(verb, *args): return in_process(verb, *args, *['--model', 'nuclei-fast']*(verb in ('run', 'score', 'trust')))
    return run

@pytest.fixture
def plate(folder, sharp, tmp_path, refocus):
    "A folder with two images in focus beside a folder with two images, whose results lie in it"
    (tmp_path/'sharp').mkdir()
    for i in range(2): tifffile.imwrite(tmp_path/'sharp'/f'field{i}.tif', np.roll(sharp, 20*i, 1))
    assert refocus('run', folder, '--out', folder/'refocused', '--uncertainty').code==0
    return folder

GUID = '4BFD4018-E675-475E-B5AB-2E959E6B6DA1'
BESIDE = {
    '1 thumbnail (': f'ZStep_1/x_w1_thumb{GUID}.tif', '1 projection (': f'Projection_w3{GUID}.tif', '1 hidden file (such as ._x.tif) is': 'ZStep_2/._x.tif',
    '1 file in formats that are not read (such as x.jpg)': 'ZStep_1/x.jpg', '1 file named as labels or masks': 'ZStep_1/x_labels.tif',
    '5 hidden or system folders': '@eaDir/x.tif .snapshot/daily/x.tif .Trash-1000/x.tif $RECYCLE.BIN/x.tif #recycle/x.tif'}

def test_pictures_beside_images_are_left_out_and_said(refocus, folder, tmp_path):
    for name in ' '.join([f'ZStep_1/Projection_w1{GUID}.tif', f'ZStep_2/Projection_w1{GUID}.tif', *BESIDE.values()]).split():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder/'field0.tif', folder/name)
    for i in range(2): (folder/f'field{i}.tif').unlink()
    for args in (('run','--out',tmp_path/'out'), ('score',)):
        said = refocus(args[0], folder, '--recursive', '--dry-run', *args[1:])
        assert said.code==0 and said.text.count(f'in/ZStep_')==2 and [words for words in BESIDE if words not in said.text]==[], said.text
    alone = refocus('run', folder, '--out', tmp_path/'out', '--dry-run')
    assert alone.code==2 and '1 projection (' in alone.text and 'no images here' in alone.text and '--recursive' in alone.text
    named = refocus('run', *(folder/name for name in (BESIDE['1 thumbnail ('], BESIDE['1 projection ('])), '--out', tmp_path/'out', '--dry-run')
    assert named.code==0 and named.text.count(' -> ')==2 and 'left out' not in named.text

def test_a_search_does_not_take_results_for_images(refocus, plate, tmp_path):
    said = refocus('run', plate, '--recursive', '--out', tmp_path/'other')
    assert said.code==0 and '2 done' in said.text and '2 results of refocus are left out' in said.text and '2 files with half widths' in said.text
    assert contents(tmp_path/'other').keys()=={'field0.tif', 'field1.tif'}
    again = refocus('run', plate, '--recursive', '--out', plate/'refocused', '--uncertainty')
    assert again.code==0 and '2 skipped' in again.text and '2 folders for results' in again.text
    said = refocus('score', plate, '--recursive', '--out', tmp_path/'scores.csv')
    assert said.code==0 and len((tmp_path/'scores.csv').read_text().splitlines())==3 and '2 results of refocus are left out' in said.text

def test_results_that_are_named_are_refused_or_mentioned(refocus, plate, tmp_path, monkeypatch):
    result,half = plate/'refocused'/'field0.tif', plate/'refocused_uncertainty'/'field1.tif'
    for dry in ([], ['--dry-run']):
        said = refocus('run', result, half, '--out', tmp_path/'out', *dry)
        assert said.code==1 and 'field0.tif: is a result of refocus already' in said.text and 'field1.tif: holds half widths' in said.text
    assert not (tmp_path/'out').exists()
    said = refocus('score', result, '--out', tmp_path/'scores.csv')
    assert said.code==0 and 'field0.tif is a result of refocus: the scores say how sharp the result is' in said.text
    said = refocus('score', half, '--out', tmp_path/'half.csv')
    assert said.code==1 and 'holds half widths' in said.text
    monkeypatch.setattr(sys.modules['refocus_nbdev.cli.train'], '_recipe', lambda options: None)
    for given in (result, plate/'refocused'):
        said = refocus('train', '--sharp-only', given, '--out', tmp_path/'new.safetensors', '--dry-run')
        assert said.code==2 and ('is a result' in said.text or '2 results of refocus are left out' in said.text)

def test_one_channel_after_the_other(refocus, blurred, tmp_path):
    im = MicroscopeImage(np.stack([blurred]*2), 'CYX', 0.645, 'ome', metadata=dict(Channel=dict(Name=['DNA','actin'])))
    write_image(tmp_path/'two.ome.tif', im)
    steps = [refocus('run', tmp_path/source/'two.ome.tif', '--channel', channel, '--out', tmp_path/out) for source,channel,out in (('', 'DNA', 'dna'), ('dna', 'actin', 'both'), ('both', 'DNA', 'again'))]
    assert [said.code for said in steps]==[0,0,1] and 'its channel DNA is a result of refocus already' in steps[-1].text

def test_swapped_sides_are_refused(refocus, plate, tmp_path):
    results,sharp,report = plate/'refocused', tmp_path/'sharp', ['--out', tmp_path/'report', '--no-nuclei', '--no-classical']
    for a,b in ((sharp, results), (sharp/'field0.tif', results/'field0.tif')):
        said = refocus('evaluate', a, b, *report)
        assert said.code==2 and 'targets are images in focus' in said.text and not (tmp_path/'report').exists()
    said = refocus('evaluate', results, sharp, '--input', results, *report)
    assert said.code==2 and 'inputs are images before refocusing' in said.text
    said = refocus('calibrate', results, sharp, '--dry-run')
    assert said.code==2 and 'images before refocusing, which come first' in said.text
    for a,b in ((results, sharp), (results/'field0.tif', sharp/'field0.tif')):
        said = refocus('trust', a, b, '--out', tmp_path/'trust.csv')
        assert said.code==2 and 'give the images first' in said.text
    said = refocus('evaluate', results, sharp, '--input', plate, *report)
    assert said.code==0 and '2 compared' in said.text and 'half widths of intervals are left out' in said.text and 'results of refocus' not in said.text

def test_files_of_no_report_stay(refocus, plate, tmp_path):
    args = 'evaluate', plate/'refocused', tmp_path/'sharp', '--out', tmp_path/'report', '--no-nuclei', '--no-classical', '--overwrite'
    assert [refocus(*args).code for _ in range(2)]==[0,0]
    for name in ('report.html', 'report.json', 'scores.csv', 'nuclei.csv'):
        old = (tmp_path/'report'/name).read_bytes()
        (tmp_path/'report'/name).write_text('my own words')
        said = refocus(*args)
        assert said.code==2 and f'{name} that belongs to no report' in said.text and (tmp_path/'report'/name).read_text()=='my own words'
        (tmp_path/'report'/name).write_bytes(old)

def test_a_result_replaces_a_damaged_one_but_no_other_file(refocus, plate, tmp_path):
    out = plate/'refocused'
    whole = (out/'field0.tif').read_bytes()
    (out/'field0.tif').write_bytes(whole[:-2000])
    (out/'field1.tif').write_text('my own words')
    said = refocus('run', plate, '--out', out, '--overwrite')
    assert said.code==1 and '1 done, 0 skipped, 1 failed' in said.text and 'is never replaced: move it' in said.text
    assert (out/'field0.tif').read_bytes()==whole and (out/'field1.tif').read_text()=='my own words'

@pytest.mark.parametrize('given', ['plate [2023-05]/*.tif', 'plate [2023-05]/**/*.tif', 'pl*/a[[]1].tif', '* [2023-05]/*.tif', 'plate [2023-05]'])
def test_brackets_in_names(refocus, folder, tmp_path, monkeypatch, given):
    (tmp_path/'plate [2023-05]').mkdir()
    shutil.copy(folder/'field0.tif', tmp_path/'plate [2023-05]'/'a[1].tif')
    monkeypatch.chdir(tmp_path)
    for args in (('run', given, '--dry-run'), ('score', given, '--dry-run'), ('info', given), ('evaluate', given, given, '--dry-run')):
        if args[0]=='info' and '**' in given: continue
        said = refocus(*args)
        assert said.code==0 and 'a[1].tif' in said.text.replace(os.sep, '/'), said.text

def test_planes_that_may_be_channels(refocus, blurred, tmp_path):
    tifffile.imwrite(tmp_path/'two.tif', np.stack([blurred]*2), photometric='minisblack', metadata=None)
    for args in (('run','--dry-run'), ('run','--out',tmp_path/'out'), ('score','--out',tmp_path/'scores.csv')):
        said = refocus(args[0], tmp_path/'two.tif', *args[1:])
        assert said.code==0 and 'if they are channels, add --axes CYX' in said.text
    assert 'add --axes' not in refocus('run', tmp_path/'two.tif', '--axes', 'CYX', '--dry-run').text

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may read everything')
def test_what_may_not_be_read(refocus, folder, tmp_path):
    (folder/'deep').mkdir(mode=0)
    (folder/'field1.tif').chmod(0)
    said = refocus('run', folder, '--recursive', '--out', tmp_path/'out')
    (folder/'deep').chmod(0o755)
    assert said.code==1 and '1 done, 0 skipped, 2 failed' in said.text and said.text.count('may not be read (permission denied)')==2
