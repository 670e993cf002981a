"Doubts that hold for any stain, through the command: what they say, where they are written, and what --strict refuses"
import csv, json
import numpy as np, pytest, tifffile
from scipy.ndimage import gaussian_filter
from refocus_nbdev.io.images import read_image
from refocus_nbdev.optics.specimen import make_field

SIZE = 256

def photographed(light, seed=0):
    "An image as a camera records it: photons, noise of its own, an offset"
    rng = np.random.default_rng(seed)
    return np.clip(rng.poisson(np.maximum(light, 0))+rng.normal(105, 4.4, light.shape), 0, 65535).round().astype(np.uint16)

def defocused(light, um): return gaussian_filter(light, 0.5*um) if um else light

@pytest.fixture(scope='module')
def light(): return make_field(np.random.default_rng(3), (SIZE,SIZE))[0]*2

@pytest.fixture
def written(tmp_path):
    "A function that writes images by their names, and returns their folder"
    def write(**images):
        folder = tmp_path/'in'
        folder.mkdir()
        for name,x in images.items(): tifffile.imwrite(folder/f'{name}.tif', x)
        return folder
    return write

@pytest.fixture
def ran(in_process, tmp_path):
    "A function that refocuses a folder, and returns the facts on each file by its name"
    def run(folder, *args):
        said = in_process('run', folder, '--out', tmp_path/'out', '--pixel-um', 0.645, '--json', *args)
        return {j['source'].rpartition('/')[2][:-4]: j for j in json.loads(said.text[said.text.index('{'):])['files']}
    return run

@pytest.fixture
def scored(in_process, tmp_path):
    "A function that scores a folder, and returns the rows of the table by the names of the files"
    def score(folder):
        said = in_process('score', folder, '--out', tmp_path/'scores.csv', '--pixel-um', 0.645)
        assert said.code==0, said.text
        with open(tmp_path/'scores.csv', newline='') as f:
            return {row['file'].rpartition('/')[2][:-4]: row for row in csv.DictReader(f)}
    return score

def cut_off(x, level): return np.clip(x-level, 0, None).astype(np.uint16)

def test_a_background_that_was_cut_off_is_doubted_and_never_in_focus(written, ran, scored, light):
    planes = {um: photographed(defocused(light, um)).astype(float) for um in (0, 24)}
    images = {f'{kind}{um}': cut_off(x, level) for um,x in planes.items()
              for kind,level in dict(whole=0, median=np.median(x), fifth=np.percentile(x, 20)).items()}
    folder = written(**images)
    files,rows = ran(folder),scored(folder)
    for name in images:
        was_cut = not name.startswith('whole')
        assert any('cut off' in d for d in files[name]['doubts'])==was_cut, name
        assert ('cut off' in rows[name]['note'])==was_cut, name
        if was_cut: assert rows[name]['in_focus']!='True' and files[name]['found_um']!=[0], name

def test_strict_refuses_what_was_cut_off(written, ran, light):
    x = photographed(defocused(light, 16)).astype(float)
    refused = ran(written(cut=cut_off(x, np.median(x))), '--strict')['cut']
    assert refused['status']=='failed' and 'refocus the image as it was before' in refused['note']

def test_run_and_score_find_the_same_distance(written, ran, scored, light):
    images = {f'at{um}': photographed(defocused(light, um)) for um in (0, 6, 12, 24)}
    images['dim'] = photographed(defocused(light, 16)/20)
    folder = written(**images)
    files,rows = ran(folder),scored(folder)
    for name in images:
        um = float(rows[name]['defocus_um'])
        assert abs(files[name]['found_um'][0]-um)<0.01, name
        assert (um<=2)==(rows[name]['in_focus']=='True'), name
        assert float(rows[name]['low_um'])<=um<=float(rows[name]['high_um']), name
    assert float(rows['at0']['defocus_um'])==0 < float(rows['at12']['defocus_um']) < float(rows['at24']['defocus_um'])

def test_noise_comes_back_as_it_is(written, ran, scored, tmp_path):
    folder = written(noise=photographed(np.zeros((SIZE,SIZE))), bright=photographed(np.full((SIZE,SIZE), 3000.)))
    files,rows = ran(folder),scored(folder)
    for name,facts in files.items():
        assert facts['doubts']==['nothing but noise is to be seen'] and facts['found_um']==[None]
        assert rows[name]['in_focus']=='' and rows[name]['defocus_um']==''
        np.testing.assert_array_equal(*(tifffile.imread(o/f'{name}.tif') for o in (folder, tmp_path/'out')))

def test_a_single_object_is_seen_among_nothing(written, scored):
    y,x = np.indices((3*SIZE,3*SIZE))
    nucleus = 800.*(np.hypot(y-400, (x-380)/1.3)<11)
    rows = scored(written(**{f'at{um}': photographed(defocused(nucleus, um)) for um in (6, 24)}))
    near,far = (rows[name]['defocus_um'] for name in ('at6','at24'))
    assert float(far)>8
    if near: assert float(near)+3<float(far)
    else: assert 'too little' in rows['at6']['note']

def test_smoothing_and_a_display_curve_are_doubted(written, ran, light):
    x = photographed(defocused(5*light, 16)).astype(float)
    unit = ((x-x.min())/np.ptp(x))
    images = dict(whole=x, smoothed=gaussian_filter(x, 1.5), gamma=65535*unit**0.45, linear=65535*unit)
    files = ran(written(**{name: o.round().astype(np.uint16) for name,o in images.items()}))
    assert any('smoothed' in d for d in files['smoothed']['doubts'])
    assert any('gamma' in d for d in files['gamma']['doubts'])
    assert not any('gamma' in d or 'smoothed' in d for name in ('whole','linear') for d in files[name]['doubts'])

def test_rescaling_with_a_known_pixel_size_is_no_doubt(in_process, written, light, tmp_path):
    folder = written(small=photographed(defocused(light, 12)))
    said = in_process('run', folder, '--out', tmp_path/'out', '--pixel-um', 0.5, '--strict')
    assert said.code==0 and 'rescaled from 0.5 to 0.645 um a pixel' in said.text and 'doubtful' not in said.text
    software = read_image(tmp_path/'out'/'small.tif').software
    assert 'rescaled from 0.5 to 0.645' in software and 'doubtful' not in software
