import base64, io, json, re
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
    for m in sums['means']:
        t = rows[rows.method==m['method']]
        assert np.average(t[m['score']], weights=t.true_nuclei if m['score']=='count_error' else None)==pytest.approx(m['mean'], abs=1e-4) and m['low']<m['mean']<m['high']
    n = next(n for n in sums['nuclei'] if n['method']=='refocused')
    for k in ('found','light slope','light in grown outline r2'): assert n[f'{k} low']<=n[k]<=n[f'{k} high']
    assert page.tags.count('details')==1 and page.tags.count('tr')>16
    mean = {m['method']:m['mean'] for m in sums['means'] if m['score']=='psnr'}
    assert mean['refocused'] > mean['doing nothing']+4
    gain = next(g for g in sums['gains'] if g['score']=='psnr')
    assert gain['low']<gain['mean']<gain['high'] and gain['mean']==pytest.approx(mean['refocused']-mean['doing nothing'], abs=1e-4)
    assert f'by {gain["mean"]:.1f} dB ({gain["low"]:.1f} to {gain["high"]:.1f}) of PSNR' in (tmp_path/'report'/'report.html').read_text()

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
    assert said.code==1 and '2 compared, 3 failed (1 target without a prediction), 1 prediction without a target left out' in said.text
    page = (own/'r'/'report.html').read_text()
    for o in ('fits_not.tif: 1 plane of 80 x 128 px', 'text.tif: cannot be read', 'sharp/missing.tif', 'out/alone.tif'): assert o in page
    assert '2 predictions compared, 3 failed (1 target without a prediction), 1 prediction without a target left out.' in page
    assert set(pd.read_csv(own/'r'/'scores.csv').file.map(lambda f: f.split('/')[-1]))=={'a_refocused.tif','b_refocused.tif'}

def test_a_damaged_target_fails_alone(in_process, own):
    (own/'sharp'/'a.tif').write_text('not an image')
    said = in_process('evaluate', own/'out', own/'sharp', '--no-nuclei', '--out', own/'r')
    assert said.code==1 and '1 compared, 4 failed' in said.text and 'sharp/a.tif: cannot be read' in said.text

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
    assert said.code==1 and 'text.tif: cannot be read' in said.text and re.search(r'out of focus: 1 of 3 planes, by \d+ um\n', said.text)
    t = pd.read_csv(tmp_path/'s.csv')
    assert t.channel.tolist()==['1','DNA','actin'] and t.in_focus.tolist()[1:]==[True, False] and t.note[0].endswith('nothing to tell by')
    assert t.defocus_um[2]>4 and t.low_um[2]<t.defocus_um[2]<t.high_um[2]
    assert len(pd.read_csv(tmp_path/'t.csv'))==2 and [p.name for p in (tmp_path/'maps').iterdir()]==['two.ome.png']

def test_files_with_other_axes_have_maps_too(in_process, tmp_path):
    x = tifffile.imread(sorted((SAMPLE/'BBBC006_v1_images_z_10').iterdir())[0])
    (tmp_path/'in').mkdir()
    tifffile.imwrite(tmp_path/'in'/'a.tif', x, photometric='minisblack')
    tifffile.imwrite(tmp_path/'in'/'pages.tif', np.stack([x, x]), photometric='minisblack', metadata=None)
    tifffile.imwrite(tmp_path/'in'/'stack.tif', np.stack([x, x]), imagej=True, metadata=dict(axes='ZYX'))
    args = 'score', tmp_path/'in', '--pixel-um', 0.645, '--out', tmp_path/'s.csv', '--pictures', tmp_path/'maps'
    assert in_process(*args).code==0
    assert sorted(f.name for f in (tmp_path/'maps').iterdir())==['a.png', 'pages.png', 'stack.png']
    one = *args[:1], tmp_path/'in'/'pages.tif', *args[2:-1], tmp_path/'named', '--axes', 'TYX', '--overwrite'
    assert in_process(*one).code==0 and (tmp_path/'named'/'pages.png').exists()

def test_a_table_of_scores_is_not_replaced(in_process, folder, tmp_path):
    (tmp_path/'s.csv').write_text('mine')
    assert in_process('score', folder, '--out', tmp_path/'s.csv').code==2 and (tmp_path/'s.csv').read_text()=='mine'
    assert in_process('score', folder, '--out', tmp_path/'s.csv', '--overwrite').code==2 and (tmp_path/'s.csv').read_text()=='mine'
    (tmp_path/'s.csv').write_text('')
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
    assert 'times the noise, median' in said.text and 'a_refocused.tif: is its image as it was' in said.text and t.note.str.contains('not refocused').tolist()==[True, False]
    assert t.left_over[1] > 2*t.left_over[0] and len(list((own/'p').iterdir()))==len(t)==2
    assert all(Image.open(p).size[0]>=3*blurred.shape[1] for p in (own/'p').iterdir())
    assert {'too_dark','contradicted','missing','surplus'} <= set(t) and t.contradicted[1]>0 and '% of the area contradicts' in said.text
    assert 'surplus' in set(pd.read_csv(own/'s.csv').suspect)
    said = in_process('trust', own/'in', own/'out', '--objects', 'nuclei', '--out', own/'n.csv')
    assert 'too dark' in said.text and 'regions:' not in said.text and pd.read_csv(own/'n.csv').nuclei.sum()>0
    before = contents(own)
    assert in_process('trust', own/'in', own/'out', '--out', own/'t.csv').code==2 and contents(own)==before
    for um in ('0', '-3', 'nan'):
        said = in_process('trust', own/'in', own/'out', '--nucleus-um', um, '--out', own/'u.csv')
        assert said.code==2 and '--nucleus-um' in said.text and contents(own)==before

def test_a_report_of_images_in_focus(in_process, tmp_path, sharp):
    tifffile.imwrite(tmp_path/'a.tif', sharp)
    said = in_process('evaluate', tmp_path/'a.tif', tmp_path/'a.tif', '--defocus-um', '0', '--out', tmp_path/'r')
    assert said.code==0 and '100.0' in said.text

def test_a_result_that_is_as_good_as_its_input(in_process, tmp_path, sharp):
    path = tmp_path/'a.tif'
    tifffile.imwrite(path, sharp)
    assert in_process('evaluate', path, path, '--input', path, '--no-nuclei', '--out', tmp_path/'r').code==0
    page = (tmp_path/'r'/'report.html').read_text()
    assert 'as near to the images in focus as their inputs are: the difference is 0.0 dB of PSNR' in page
    assert 'Means over all images<' in page and 'farther' not in page and '-0.0' not in page

def test_images_that_do_not_pair_are_told_how_files_pair(in_process, tmp_path, sharp):
    for name in ('in/a.tif', 'in/b.tif', 'sharp/c.tif', 'sharp/d.tif'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path/name, sharp)
    for verb in ('evaluate', 'calibrate'):
        said = in_process(verb, tmp_path/'in', tmp_path/'sharp', '--out', tmp_path/'out')
        assert said.code==2 and 'need the same names' in said.text and 'the same well, site and channel' in said.text

def test_results_given_before_their_images(in_process, refocused, tmp_path):
    said = in_process('trust', refocused/Z, SAMPLE/Z, '--out', tmp_path/'t.csv')
    assert said.code==2 and 'give the images first: trust IMAGES RESULTS' in said.text and not contents(tmp_path)

@pytest.fixture
def few_groups_at_first(monkeypatch):
    "A function: from its call on, calibrate finds out after reading the files that there are too few groups"
    from refocus_nbdev.cli import calibrate
    return lambda: monkeypatch.setattr(calibrate, '_check_groups', lambda *args, **kwargs: None)

def evaluated(in_process, root, *more):
    "What `evaluate` says and writes of the folders `out` and `sharp`"
    said = in_process('evaluate', root/'out', root/'sharp', '--no-classical', '--overwrite', '--out', root/'report', *more)
    return said,json.loads((root/'report'/'report.json').read_text())

@pytest.fixture
def wells(tmp_path):
    "Two fields of each of two wells, under names that say so, in focus and out of focus"
    for folder,z in (('sharp',16), ('out',10)):
        (tmp_path/folder).mkdir()
        for f,n in zip(sorted((SAMPLE/f'BBBC006_v1_images_z_{z}').iterdir()), ('A01_f1','A01_f2','A02_f1','A02_f2')): tifffile.imwrite(tmp_path/folder/f'{n}.tif', tifffile.imread(f)[:128,:160])
    return tmp_path

def test_fields_of_a_well_are_one_witness(in_process, wells):
    said,sums = evaluated(in_process, wells, '--no-nuclei')
    assert said.code==0 and '2 (wells, from the names). That is few' in said.text and '2 (wells, from the names)' in (wells/'report'/'report.html').read_text()
    assert sums['groups']==2 and sums['grouped_by']==['well'] and {m['low'] for m in sums['means']}=={None}

def test_groups_can_be_given(in_process, wells, monkeypatch):
    table = wells/'groups.csv'
    table.write_text('file,group\n'+'\n'.join(f'A0{w}_f{f}.tif,rat{w}{f}' for w in (1,2) for f in (1,2)))
    said,sums = evaluated(in_process, wells, '--no-nuclei', '--input', wells/'out', '--groups', table)
    assert sums['groups']==4 and '4 (as given)' in said.text and all(m['low']<m['mean']<m['high'] for m in sums['means'] if m['score']=='psnr')
    table.write_text(table.read_text().replace('A01_f1.tif', str(wells/'sharp'/'A01_f1.tif')))
    monkeypatch.chdir(wells)
    assert 'groups: 4 (as given)' in in_process('calibrate', 'out', 'sharp', '--groups', table, '--dry-run').text
    few = in_process('calibrate', wells/'out', wells/'sharp', '--dry-run')
    assert few.code==2 and 'groups: 2 (wells' in few.text and ': 2; at least 9 are needed' in few.text
    for wrong,about in (('A01_f1.tif,1', 'no row for'), ('A01_f1.tif,', 'no group'), ('A01_f1.tif,1\nA01_f1.tif,2', 'two groups')):
        table.write_text(f'file,group\n{wrong}')
        for c in ('evaluate','calibrate'):
            said = in_process(c, wells/'out', wells/'sharp', '--groups', table, '--out', wells/'new')
            assert said.code==2 and about in said.text and not (wells/'new').exists()

def test_a_list_for_cellprofiler_names_images_and_wells(in_process, wells):
    rows = ''.join(f'{n}.tif,sharp,P1,B0{i}\n' for i,n in enumerate(('A01_f1','A01_f2','A02_f1'), 1))
    (wells/'load_data.csv').write_text('Image_FileName_DNA,Image_PathName_DNA,Metadata_Plate,Metadata_Well\n'+rows)
    said = in_process('evaluate', wells/'out', wells/'load_data.csv', '--dry-run')
    assert said.code==0 and 'groups: 3 (as given)' in said.text and 'A02_f2.tif: no target' in said.text
    said = in_process('score', wells/'load_data.csv', '--dry-run')
    assert said.code==0 and said.text.split()==[str(wells/'sharp'/f'{n}.tif') for n in ('A01_f1','A01_f2','A02_f1')]

def test_one_well_is_one_group_and_fields_without_wells_are_said_to_be_doubtful(in_process, wells):
    for f in wells.glob('*/A02*'): f.unlink()
    assert evaluated(in_process, wells, '--no-nuclei')[1]['groups']==1
    for f in wells.glob('*/A01*'): f.rename(f.with_name(f.name.replace('A01', 'field')))
    said,sums = evaluated(in_process, wells, '--no-nuclei')
    assert sums['groups']==2 and '2 (fields, since names tell no wells: fields of one well are not independent' in said.text

def test_masks_are_parted_and_images_no_labels(in_process, wells):
    for f in wells.glob('*/A0*'):
        if f.stem!='A01_f1': f.unlink()
    sharp,labels = tifffile.imread(wells/'sharp'/'A01_f1.tif'),wells/'labels.tif'
    tifffile.imwrite(labels, np.uint8(255*(sharp>np.percentile(sharp, 80))))
    said,sums = evaluated(in_process, wells, '--labels', labels)
    assert said.code==0 and 'one value for all nuclei: 1. They were parted' in said.text
    assert next(m['mean'] for m in sums['means'] if (m['method'],m['score'])==('refocused','f1_50'))>0.2
    for x in (sharp, sharp/1000):
        tifffile.imwrite(labels, x.astype(np.float32))
        said,_ = evaluated(in_process, wells, '--labels', labels)
        assert said.code==1 and 'labels.tif: is no label image' in said.text

def test_targets_that_lie_off_are_named(in_process, wells):
    assert 'px off' not in evaluated(in_process, wells, '--no-nuclei')[0].text
    for f in (wells/'sharp').iterdir(): tifffile.imwrite(f, np.roll(tifffile.imread(f), (3,-4), (0,1)))
    said,sums = evaluated(in_process, wells, '--no-nuclei')
    assert 'px lower and ' in said.text and 'px farther left' in sums['hints'][0] and 'px off the predictions' in (wells/'report'/'report.html').read_text()

def test_half_widths_are_no_predictions(in_process, wells, few_groups_at_first):
    from refocus_nbdev.io.provenance import Provenance
    half_widths = Provenance('0', half_widths=True).text
    for f in (wells/'out').iterdir(): tifffile.imwrite(f, tifffile.imread(f), software=half_widths)
    said,sums = evaluated(in_process, wells)
    assert said.code==1 and sums['compared']==0 and said.text.count('holds half widths of intervals')==4
    few_groups_at_first()
    assert 'holds half widths' in in_process('calibrate', wells/'out', wells/'sharp', '--model', 'nuclei-fast', '--out', wells/'m.safetensors').text

@pytest.mark.parametrize('slope,grown,said', [(0.9, 0.97, True), (0.97, 0.9, False), (1.02, 1.2, False)])
def test_light_is_measured_where_it_is_nearest(slope, grown, said):
    from refocus_nbdev.judge.reports import _nuclei_sentences
    n = pd.DataFrame({'found':[0.9], 'light in true outline slope':[slope], 'light in grown outline slope':[grown], 'light in grown outline r2':[1.]}, index=['refocused'])
    assert ('measure it in the latter' in ' '.join(_nuclei_sentences(n)))==said

def test_channels_that_were_only_copied_are_not_judged(in_process, tmp_path, blurred, sharp):
    rng = np.random.default_rng(0)
    two = lambda x: np.stack([x, rng.integers(90, 400, x.shape).astype(np.uint16)])
    for name,x in (('plate',blurred), ('sharp',sharp)):
        (tmp_path/name).mkdir()
        tifffile.imwrite(tmp_path/name/'a.tif', two(x), imagej=True, metadata=dict(axes='CYX'))
    in_process('run', tmp_path/'plate', '--out', tmp_path/'out', '--channel', '1', '--pixel-um', '0.645', '--uncertainty')
    in_process('evaluate', tmp_path/'out', tmp_path/'sharp', '--out', tmp_path/'report')
    assert len(pd.read_csv(tmp_path/'report'/'scores.csv'))==1
    said = in_process('trust', tmp_path/'plate', tmp_path/'out', '--out', tmp_path/'t.csv')
    assert len(pd.read_csv(tmp_path/'t.csv'))==1, said.text
    assert 'holds half widths' in in_process('trust', tmp_path/'plate', tmp_path/'out_uncertainty', '--out', tmp_path/'u.csv').text
    again = in_process('run', tmp_path/'plate', '--out', tmp_path/'out', '--channel', '1', '--defocus-um', '20', '--overwrite').text
    assert 'holds intervals of earlier results of 1 of these files' in again

def test_what_was_given_to_run_need_not_be_given_again(in_process, tmp_path, blurred, sharp):
    "Two channels that the file calls pages, the second only copied, and pixels of another size than the file says"
    for folder,x in (('plate',blurred), ('sharp',sharp)):
        (tmp_path/folder).mkdir()
        tifffile.imwrite(tmp_path/folder/'s.tif', np.stack([x, x[::-1]]), photometric='minisblack', metadata=None, resolution=(1e4/3, 1e4/3), resolutionunit='CENTIMETER')
    said = in_process('run', tmp_path/'plate', '--axes', 'CYX', '--channel', '1', '--pixel-um', '0.645', '--model', 'nuclei-fast', '--out', tmp_path/'out')
    assert said.code==0, said.text
    said = in_process('trust', tmp_path/'plate', tmp_path/'out', '--device', 'cpu', '--out', tmp_path/'t.csv')
    t = pd.read_csv(tmp_path/'t.csv')
    assert len(t)==1 and 'not refocused' not in said.text and t.nuclei[0]>1
    said,sums = evaluated(in_process, tmp_path)
    assert said.code==0 and sums['compared']==1 and len(pd.read_csv(tmp_path/'report'/'scores.csv'))==1 and not any('not known' in h for h in sums['hints'])
    tifffile.imwrite(tmp_path/'sharp'/'s.tif', sharp)
    assert evaluated(in_process, tmp_path, '--no-nuclei')[0].code==0, 'a target of the one channel'
    assert 'axes XY do not fit' in evaluated(in_process, tmp_path, '--axes', 'XY')[0].text

def test_axes_are_given_where_nothing_says_them(in_process, tmp_path, blurred, sharp, few_groups_at_first):
    for folder,x in (('in',blurred), ('out',(blurred+sharp)/2), ('sharp',sharp)):
        (tmp_path/folder).mkdir()
        tifffile.imwrite(tmp_path/folder/'s.tif', np.stack([x, x[::-1]]).astype(np.uint16), photometric='minisblack', metadata=None)
    given = '--axes', 'CYX', '--channel', '1'
    assert in_process('trust', tmp_path/'in', tmp_path/'out', *given, '--out', tmp_path/'t.csv').code in (0, 1) and len(pd.read_csv(tmp_path/'t.csv'))==1
    assert evaluated(in_process, tmp_path, '--no-nuclei', *given)[0].code==0 and len(pd.read_csv(tmp_path/'report'/'scores.csv'))==1
    few_groups_at_first()
    said = in_process('calibrate', tmp_path/'in', tmp_path/'sharp', '--model', 'nuclei-fast', '--axes', 'TZYX', '--out', tmp_path/'m.safetensors').text
    assert 'axes TZYX do not fit' in said
    assert ': 1; at least 9 are needed' in in_process('calibrate', tmp_path/'in', tmp_path/'sharp', '--model', 'nuclei-fast', *given, '--out', tmp_path/'m.safetensors').text

def test_sizes_of_pixels_are_given_where_files_are_wrong_or_silent(in_process, tmp_path, blurred, sharp, few_groups_at_first):
    "Pixels that are said to be no squares, and of no size at all; and a size at which the default nucleus takes an odd number of pixels"
    for folder,x in (('out',blurred), ('sharp',sharp)):
        (tmp_path/folder).mkdir()
        tifffile.imwrite(tmp_path/folder/'a.tif', x, resolution=(1e4/0.5, 1e4/0.7), resolutionunit='CENTIMETER')
    assert 'square' in evaluated(in_process, tmp_path)[0].text
    few_groups_at_first()
    assert 'square' in (calibrated := lambda *more: in_process('calibrate', tmp_path/'out', tmp_path/'sharp', '--model', 'nuclei-fast', '--out', tmp_path/'m.safetensors', *more).text)()
    said,sums = evaluated(in_process, tmp_path, '--pixel-um', '0.65')
    assert said.code==0 and not any('not known' in h for h in sums['hints']) and ': 1; at least 9 are needed' in calibrated('--pixel-um', '0.65')
    for folder,x in (('out',blurred), ('sharp',sharp)): tifffile.imwrite(tmp_path/folder/'a.tif', x)
    said,sums = evaluated(in_process, tmp_path)
    assert said.text.count('taken to be 0.645 um')==1 and 'taken to be 0.645 um' in (tmp_path/'report'/'report.html').read_text()
    assert evaluated(in_process, tmp_path, '--pixel-um', '2')[1]['means']!=sums['means'] and in_process('evaluate', tmp_path/'out', tmp_path/'sharp', '--pixel-um', '0').code==2

def bright(path):
    "The brightest fifth of an image, as a mask"
    x = tifffile.imread(path)
    return np.uint8(x>np.percentile(x, 80))

def test_a_plate_that_is_labelled_in_part(in_process, wells):
    "The label, and the input, of one field are not those of all"
    for folder in ('labels','in'): (wells/folder).mkdir()
    tifffile.imwrite(wells/'labels'/'A02_f1.tif', bright(wells/'sharp'/'A02_f1.tif'))
    tifffile.imwrite(wells/'in'/'A01_f2.tif', tifffile.imread(wells/'out'/'A01_f2.tif'))
    said,sums = evaluated(in_process, wells, '--labels', wells/'labels', '--input', wells/'in')
    t = pd.read_csv(wells/'report'/'scores.csv')
    assert said.code==0 and 'Labels were given for 1 of 4' in said.text and 'Inputs were given for 1 of 4' in said.text
    of = lambda method: [f.split('/')[-1] for f in t[t.method==method].file]
    assert (of('in focus'), of('doing nothing'), len(of('refocused')))==(['A02_f1.tif'], ['A01_f2.tif'], 4) and t[t.method=='refocused'].f1_50.notna().all()
    (wells/'labels'/'A02_f1.tif').rename(wells/'labels'/'other.tif')
    said = in_process('evaluate', wells/'out', wells/'sharp', '--labels', wells/'labels', '--out', wells/'new')
    assert said.code==2 and 'none of the images here belongs' in said.text and not (wells/'new').exists()

def test_all_are_compared_with_a_target_that_is_one_file(in_process, wells):
    "Such as the planes of a stack with the one in focus"
    listed = in_process('evaluate', wells/'out', wells/'sharp'/'A01_f1.tif', '--dry-run')
    assert listed.code==0 and listed.text.count('with ')>=4 and listed.text.count('A01_f1.tif')>=5 and 'no target' not in listed.text
    alone = in_process('evaluate', wells/'out'/'A02_f1.tif', wells/'sharp', '--dry-run')
    assert alone.code==1 and 'A01_f1.tif: no prediction' in alone.text

def test_a_report_tells_makers_apart_and_not_files(in_process, wells):
    made = 'refocus_nbdev 1; model nuclei, sha256 12; input sha256 {}; told {} um out of focus; computed by a neural network: not a measurement'
    for i,f in enumerate(sorted((wells/'out').iterdir())): tifffile.imwrite(f, tifffile.imread(f), software=made.format(i, 5.5+i))
    said,sums = evaluated(in_process, wells, '--no-nuclei')
    assert sums['predictions_by']==['refocus_nbdev 1; model nuclei, sha256 12; computed by a neural network: not a measurement']

def test_the_table_of_means_fits_a_terminal(in_process, wells):
    one,target = (wells/folder/'A01_f1.tif' for folder in ('out','sharp'))
    said = in_process('evaluate', one, target, '--input', one, '--defocus-um', '12', '--out', wells/'report').text.splitlines()
    i = next(i for i,l in enumerate(said) if 'si-PSNR' in l)
    assert [l.split()[0] for l in said[i+1:i+6]]==['refocused','doing','unsharp','Wiener','Richardson-Lucy'] and max(map(len, said[i:i+6]))<=100
    assert 'scale-invariant PSNR' in (wells/'report'/'report.html').read_text()

@pytest.fixture
def blank(wells):
    "Two of four fields are blank wells, and the prediction of one of them shows nuclei"
    rng = np.random.default_rng(0)
    for f in ('A01_f2','A02_f1'):
        for folder in ('sharp','out'):
            if (f,folder)!=('A02_f1','out'): tifffile.imwrite(wells/folder/f'{f}.tif', rng.poisson(100, (128,160)).astype(np.uint16))
    return wells

def test_blank_wells_are_left_out_and_said(in_process, blank):
    said,sums = evaluated(in_process, blank, '--input', blank/'out')
    t = pd.read_csv(blank/'report'/'scores.csv').set_index('method').loc['refocused']
    assert said.code==0 and t.psnr.isna().tolist()==t.f1_50.isna().tolist()==[False, True, True, False]
    invented = t.found_nuclei.iloc[2]
    hint = f'2 of 4 fields show nothing in focus and are left out; of those, in 1 the prediction shows {invented} nuclei.'
    assert invented>2 and hint in said.text and sums['hints'][0]==hint and hint in (blank/'report'/'report.html').read_text()
    mean = {m['score']:m for m in sums['means'] if m['method']=='refocused'}
    assert mean['psnr']['images']==2 and mean['psnr']['mean']==pytest.approx(t.psnr.mean(), abs=1e-4) and sums['groups']==2 and sums['left_out']==2
    for f in blank.glob('*/*.tif'):
        if f.stem!='A01_f2': f.unlink()
    said,sums = evaluated(in_process, blank)
    assert said.code==0 and '1 of 1 fields shows nothing in focus and is left out; the prediction shows no nuclei there.' in said.text and sums['means']==[] and sums['groups']==0

def test_labels_without_nuclei_have_no_scores_of_nuclei(in_process, wells):
    (wells/'labels').mkdir()
    for i,f in enumerate(sorted((wells/'sharp').iterdir())): tifffile.imwrite(wells/'labels'/f'{f.stem}_labels.tif', (i>0)*bright(f))
    said,sums = evaluated(in_process, wells, '--labels', wells/'labels')
    t = pd.read_csv(wells/'report'/'scores.csv').set_index('method').loc['refocused']
    assert t.psnr.notna().all() and t.f1_50.isna().tolist()==t.count_error.isna().tolist()==[True, False, False, False]
    assert '1 of 4 fields has no nuclei and is left out of the scores of nuclei; of those, in 1 the prediction shows' in said.text
    pooled = (t.found_nuclei-t.true_nuclei).abs()[t.true_nuclei>0].sum()/t.true_nuclei.sum()
    assert next(m['mean'] for m in sums['means'] if (m['method'],m['score'])==('refocused','count_error'))==pytest.approx(pooled, abs=1e-4)

def test_labels_beside_targets_are_labels_only(in_process, wells):
    "As programs for segmentation write them, and with an image that may be one or another"
    for f in sorted((wells/'sharp').iterdir()): Image.fromarray(np.uint8(tifffile.imread(f)>300)).save(f.with_name(f.stem+'_cp_masks.png'))
    said = in_process('evaluate', wells/'out', wells/'sharp', '--labels', wells/'sharp', '--dry-run')
    assert said.code==0 and said.text.count(' with ')==4 and 'no prediction' not in said.text
    said,sums = evaluated(in_process, wells, '--labels', wells/'sharp')
    assert said.code==0 and 'masks, with one value for all nuclei' in said.text and 'Labels were given' not in said.text
    for n in ('A01_f1_target','A01_f1_refocused'): tifffile.imwrite(wells/'sharp'/f'{n}.tif', np.zeros((128,160), np.uint8))
    said = in_process('evaluate', wells/'out', wells/'sharp', '--dry-run').text
    assert f'{wells/"out"/"A01_f1.tif"} with {wells/"sharp"/"A01_f1.tif"}' in said
    (wells/'sharp'/'A01_f1.tif').unlink()
    said = in_process('evaluate', wells/'out', wells/'sharp', '--out', wells/'new')
    assert said.code==2 and 'A01_f1.tif: two files could be it: ' in said.text and not (wells/'new').exists()

@pytest.mark.parametrize('out', ['a_file','a_file/report'])
def test_a_report_is_no_file(in_process, wells, out):
    (wells/'a_file').write_text('mine')
    said = in_process('evaluate', wells/'out', wells/'sharp', '--out', wells/out)
    assert said.code==2 and 'is a file' in said.text and 'comparing' not in said.text and (wells/'a_file').read_text()=='mine'

def test_nuclei_beyond_the_axes_are_counted():
    from refocus_nbdev.judge.compare import READINGS
    from refocus_nbdev.judge.reports import draw_nuclei
    t = pd.DataFrame({c: np.arange(1., 1001) for c in dict.fromkeys(sum(READINGS.values(), ()))}).assign(method='refocused')
    ax = draw_nuclei(t.assign(light_inside=3*t.light)).axes[2]
    assert ax.get_ylim()[1]>3000 and not ax.texts
    t.loc[999, 'light_inside'] = 1e6
    ax = draw_nuclei(t).axes[2]
    assert ax.get_ylim()[1]<2000 and ax.texts[0].get_text()=='1 beyond the axes'

def test_intervals_of_nuclei_are_quick_and_hold_the_line():
    from time import process_time
    from refocus_nbdev.judge.compare import READINGS, nuclei_of
    rng = np.random.default_rng(0)
    t = pd.DataFrame({c: rng.normal(1e5, 1e4, 30000) for c in dict.fromkeys(sum(READINGS.values(), ()))}).assign(method='refocused', defocus_um=12., group=np.repeat(np.arange(100), 300).astype(str))
    for value,true in READINGS.values(): t[value] = 0.9*t[true]+rng.normal(0, 1e3, 30000)
    before = process_time()
    r = nuclei_of(t).iloc[0]
    assert process_time()-before<2
    for n in READINGS: assert 0.89<r[f'{n} slope low']<r[f'{n} slope']<r[f'{n} slope high']<0.91 and r[f'{n} r2 low']<r[f'{n} r2']<r[f'{n} r2 high']
