import base64, io, json
from html.parser import HTMLParser
import numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
from conftest import SAMPLE, contents

Z = 'BBBC006_v1_images_z_10'

@pytest.fixture(scope='module')
def refocused(in_process, tmp_path_factory):
    "Plane 10 of the sample plate, refocused"
    out = tmp_path_factory.mktemp('refocused')/Z
    assert in_process('run', SAMPLE/Z, '--model', 'nuclei-fast', '--out', out).code==0
    return out.parent

class Page(HTMLParser):
    "The tags of a page, those that are open, and what its pictures hold"
    def __init__(self, text):
        super().__init__()
        self.tags,self.open,self.pictures,self.linked = [],[],[],[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ('img','meta'): self.open.append(tag)
        for k,v in attrs:
            if k in ('src','href'): (self.pictures if v.startswith('data:image/png;base64,') else self.linked).append(v)
    def handle_endtag(self, tag): assert self.open.pop()==tag

def test_a_report_of_the_sample_plate(in_process, refocused, tmp_path):
    said = in_process('evaluate', refocused, SAMPLE, '--input', SAMPLE, '--labels', SAMPLE, '--no-classical', '--out', tmp_path/'report')
    assert said.code==0 and '16 compared, 0 failed' in said.text
    assert '<h2>In short</h2><p>Refocused images are nearer to' in (tmp_path/'report'/'report.html').read_text()
    page = Page((tmp_path/'report'/'report.html').read_text())
    assert not page.open and not page.linked and len(page.pictures)==4
    for p in page.pictures: assert Image.open(io.BytesIO(base64.b64decode(p.split(',')[1]))).size[0]>300
    sums,rows = json.loads((tmp_path/'report'/'report.json').read_text()),pd.read_csv(tmp_path/'report'/'scores.csv')
    assert sums['predictions_by'][0].startswith('refocus_nbdev')
    for m in sums['means']: assert rows[rows.method==m['method']][m['score']].mean()==pytest.approx(m['mean'], abs=1e-4) and m['low']<m['mean']<m['high']
    mean = {m['method']:m['mean'] for m in sums['means'] if m['score']=='psnr'}
    assert mean['refocused'] > mean['doing nothing']+4

def test_a_report_is_made_again_where_that_is_asked_for_and_nothing_else_replaced(in_process, refocused, tmp_path):
    args = 'evaluate', sorted((refocused/Z).iterdir())[0], sorted((SAMPLE/'BBBC006_v1_images_z_16').iterdir())[0], '--no-nuclei', '--out', tmp_path/'r'
    assert [in_process(*args, *more).code for more in ((), (), ('--overwrite',))]==[0, 2, 0]
    assert (tmp_path/'r'/'nuclei.csv').read_text().strip()==''
    (tmp_path/'r'/'report.json').unlink()
    before = contents(tmp_path)
    assert in_process(*args, '--overwrite').code==2 and contents(tmp_path)==before

@pytest.fixture
def own(tmp_path, sharp, blurred):
    "Folders of images of other names: two that belong together, one alone on each side, one that does not fit and one that is none"
    for folder,names in (('sharp', 'a b fits_not text missing'), ('out', 'a_refocused b_refocused fits_not text alone')):
        (tmp_path/folder).mkdir()
        for n in names.split(): tifffile.imwrite(tmp_path/folder/f'{n}.tif', (sharp if folder=='sharp' else blurred)[:80 if n=='fits_not' and folder=='out' else None])
    (tmp_path/'out'/'text.tif').write_text('not an image')
    return tmp_path

def test_what_cannot_be_compared_is_listed(in_process, own):
    said = in_process('evaluate', own/'out', own/'sharp', '--no-nuclei', '--out', own/'r')
    assert said.code==1 and '2 compared, 3 failed (1 targets without a prediction), 1 predictions without a target left out' in said.text
    page = (own/'r'/'report.html').read_text()
    for o in ('fits_not.tif: 1 planes of 128 x 80 px', 'text.tif: cannot be read', 'sharp/missing.tif', 'out/alone.tif'): assert o in page
    assert set(pd.read_csv(own/'r'/'scores.csv').file.map(lambda f: f.split('/')[-1]))=={'a_refocused.tif','b_refocused.tif'}

def test_dry_run_writes_nothing(in_process, own):
    before = contents(own)
    said = in_process('evaluate', own/'out', own/'sharp', '--dry-run', '--out', own/'r')
    assert said.code==1 and 'missing.tif: no prediction' in said.text and contents(own)==before

@pytest.mark.parametrize('args', [('out','sharp','--out','sharp'), ('out','nothing'), ('out','sharp','--defocus-um','far'), ('out','sharp','--nucleus-um','0'), ('out','sharp','--labels','nothing')], ids=' '.join)
def test_wrong_arguments(in_process, own, monkeypatch, args):
    monkeypatch.chdir(own)
    before = contents(own)
    assert in_process('evaluate', *args).code==2 and contents(own)==before

def test_scores_of_good_and_odd_files(in_process, own, blurred, sharp, tmp_path):
    src = tmp_path/'score'
    src.mkdir()
    tifffile.imwrite(src/'blank.tif', np.full((40,50), 9, np.uint8))
    tifffile.imwrite(src/'two.ome.tif', np.stack([sharp, blurred]), metadata=dict(axes='CYX', Channel=dict(Name=['DNA','actin'])), ome=True)
    (src/'text.tif').write_text('no image')
    said = in_process('score', src, '--out', tmp_path/'s.csv', '--tiles', tmp_path/'t.csv', '--pictures', tmp_path/'maps')
    assert said.code==1 and 'text.tif: cannot be read' in said.text
    t = pd.read_csv(tmp_path/'s.csv')
    assert t.channel.tolist()==['1','DNA','actin'] and t.in_focus.tolist()[1:]==[True, False] and t.note[0].endswith('nothing to tell by')
    assert t.defocus_um[2]>4 and t.low_um[2]<t.defocus_um[2]<t.high_um[2]
    assert len(pd.read_csv(tmp_path/'t.csv'))==2 and [p.name for p in (tmp_path/'maps').iterdir()]==['two.ome.png']

def test_a_table_of_scores_is_not_replaced(in_process, folder, tmp_path):
    (tmp_path/'s.csv').write_text('mine')
    assert in_process('score', folder, '--out', tmp_path/'s.csv').code==2 and (tmp_path/'s.csv').read_text()=='mine'
    assert in_process('score', folder, '--out', tmp_path/'s.csv', '--overwrite').code==0 and len(pd.read_csv(tmp_path/'s.csv'))==2

def test_distances_that_are_not_used(in_process, folder, tmp_path):
    (folder/'list.csv').write_text('file,defocus_um\nfield0.tif,12\n')
    assert 'its column defocus_um is not used' in in_process('run', folder/'list.csv', '--out', tmp_path/'out').text
    assert 'is not used' not in in_process('run', folder/'list.csv', '--defocus-um', folder/'list.csv', '--out', tmp_path/'told').text

def test_a_preview_tells_what_would_fail(in_process, folder, tmp_path):
    assert in_process('run', folder, '--out', tmp_path/'out').code==0
    before = contents(tmp_path)
    assert in_process('run', folder, '--out', tmp_path/'out', '--dry-run').text.count('done before')==2
    said = in_process('run', folder, '--out', tmp_path/'out', '--model', 'nuclei-fast', '--dry-run', '--json')
    assert said.code==1 and [f['status'] for f in json.loads(said.text)['files']]==['failed']*2 and contents(tmp_path)==before

def test_pixels_of_no_size(in_process, folder, tmp_path):
    for um in ('0', '-1'): assert in_process('run', folder, '--out', tmp_path/'out', '--pixel-um', um).code==2

def test_suspects_and_what_cannot_be_checked(in_process, own, blurred):
    "A prediction with a nucleus too much, one that fits, one of another size, one that is no image and one without an image"
    (own/'in').mkdir()
    for n in ('a','b','fits_not','text'): tifffile.imwrite(own/'in'/f'{n}.tif', blurred)
    false = blurred.astype(np.uint16)
    yy,xx = np.indices(false.shape)
    false[np.hypot(yy-48, xx-64)<9] += 1500
    tifffile.imwrite(own/'out'/'b_refocused.tif', false)
    said = in_process('trust', own/'in', own/'out', '--out', own/'t.csv', '--suspects', own/'s.csv', '--pictures', own/'p')
    assert said.code==1 and all(o in said.text for o in ('fits_not.tif: has other planes', 'text.tif: cannot be read', 'alone.tif: no image of this name'))
    t = pd.read_csv(own/'t.csv')
    assert t.left_over[1] > 2*t.left_over[0] and len(list((own/'p').iterdir()))==len(t)==2
    before = contents(own)
    assert in_process('trust', own/'in', own/'out', '--out', own/'t.csv').code==2 and contents(own)==before

def test_a_report_of_images_in_focus(in_process, tmp_path, sharp):
    tifffile.imwrite(tmp_path/'a.tif', sharp)
    said = in_process('evaluate', tmp_path/'a.tif', tmp_path/'a.tif', '--defocus-um', '0', '--out', tmp_path/'r')
    assert said.code==0 and '100.0' in said.text
