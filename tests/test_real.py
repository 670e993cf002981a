import os
from pathlib import Path
import numpy as np, pytest
from refocus_nbdev.io.images import read_image

DATA = os.environ.get('REFOCUS_DATA')
FILES = sorted(Path(DATA).resolve().glob('**/BBBC006_v1_images_z_00/*_w1*.tif')) if DATA else []
pytestmark = pytest.mark.skipif(not FILES, reason='REFOCUS_DATA names no folder with plane z=0 of BBBC006')

@pytest.fixture(scope='module')
def done(refocus, tmp_path_factory):
    out = tmp_path_factory.mktemp('real')
    return refocus('run', *FILES, '--out', out), out

def test_all_are_done(done):
    said,out = done
    assert said.code==0 and f'{len(FILES)} done, 0 skipped, 0 failed' in said.text

@pytest.mark.parametrize('source', FILES, ids=lambda p: p.stem[-60:-36])
def test_they_are_what_they_were(done, source):
    a,b = read_image(source), read_image(done[1]/source.name)
    assert (a.axes, a.pixels.shape, a.pixels.dtype, a.kind)==(b.axes, b.pixels.shape, b.pixels.dtype, b.kind)

@pytest.mark.parametrize('source', FILES, ids=lambda p: p.stem[-60:-36])
def test_edges_appear(done, source):
    edges = lambda p: np.ptp(np.diff(read_image(p).pixels.astype(float)[::2,::2], axis=0))
    assert edges(done[1]/source.name) > edges(source)
