"""Results that an earlier version made can be read, and count as done; old_results/README.md tells how they were made"""
import gzip, shutil
from pathlib import Path
from typing import NamedTuple
import pytest
from conftest import contents
from refocus_nbdev.io.disk import file_hash
from refocus_nbdev.io.images import as_refocused, open_image
from refocus_nbdev.io.provenance import UNSIZED, read_provenance, texts_of

OLD = Path(__file__).parent/'old_results'
BRIGHT = 'does not look like nuclei: more than half of it is bright'
UNLIKE = 'its result, blurred again, does not give it back: another stain, other optics, or an error'

class Old(NamedTuple):
    "A result: the arguments it was made with, and what it tells apart from its model and its input"
    arguments: tuple
    told: dict
    doubts: list
    earlier: str

RESULTS = {
    'plain.tif': Old((), dict(found_um=(6.,)), [UNSIZED.text], 'a microscope'),
    'imagej.tif': Old(('--channel', 2), dict(channels=('2',), found_um=(6.,)), [BRIGHT], 'tifffile.py'),
    'named.ome.tif': Old(('--channel', 'β-tubulin', '--defocus-um', 12),
                         dict(channels=('β-tubulin',), defocus_um=12., found_um=(11.8,)), [UNLIKE], 'tifffile.py'),
    'grey.png': Old(('--pixel-um', 0.645), dict(pixel_um=0.645, found_um=(6.,)), [], ''),
    'small.zarr': Old(('--axes', 'CYX', '--blur-per-um', 0.4), dict(axes='CYX', blur_per_um=0.4, found_um=(4.8,4.8)),
                      [f'{BRIGHT} (1 of 2 planes)'], ''),
}
USUAL = dict(version='0.1.0', model='small', pixel_um=None, axes=None, blur_per_um=None, channels=None, scale_sha256='',
             defocus_um=None, middle_only=False, half_widths=False)

@pytest.fixture(params=RESULTS)
def name(request):
    "Name of a file, if this machine can read it"
    if request.param.endswith('.zarr'): pytest.importorskip('zarr')
    return request.param

@pytest.fixture
def small(tmp_path):
    "The model file that made the results"
    path = tmp_path/'small.safetensors'
    path.write_bytes(gzip.decompress((OLD/'small.safetensors.gz').read_bytes()))
    return path

@pytest.fixture
def out(tmp_path):
    "A copy of the results, which a command may write to"
    return Path(shutil.copytree(OLD/'out', tmp_path/'out'))

def made(name):
    "What a result says of itself"
    with open_image(OLD/'out'/name) as f: return read_provenance(f.software)

def test_what_made_it_is_known(small, name):
    p,old = made(name),RESULTS[name]
    assert {k: getattr(p, k) for k in USUAL|old.told}==USUAL|old.told
    assert (texts_of(p.doubts), p.earlier)==(old.doubts, old.earlier)
    assert p.input_sha256==file_hash(OLD/'in'/name)[:16]
    assert p.model_sha256==file_hash(small)[:16]

def test_a_doubt_that_others_go_by_has_its_code():
    assert made('plain.tif').doubts==(UNSIZED,)

def test_it_counts_as_done(in_process, small, out, name):
    before = contents(out)
    said = in_process('run', OLD/'in'/name, '--model', small, '--out', out, *RESULTS[name].arguments)
    assert said.code==0 and '0 done, 1 skipped, 0 failed' in said.text
    assert contents(out)==before

def test_it_does_not_count_as_done_with_other_arguments(in_process, small, out):
    before = contents(out)
    said = in_process('run', OLD/'in'/'grey.png', '--model', small, '--out', out, '--pixel-um', 0.5)
    assert said.code==1 and 'other arguments' in said.text
    assert contents(out)==before

def test_its_doubts_are_refused_by_strict(in_process, small, out):
    said = in_process('run', OLD/'in'/'imagej.tif', '--model', small, '--out', out, '--channel', 2, '--strict')
    assert said.code==1 and BRIGHT in said.text

def test_it_is_read_as_it_was_made(name):
    told = dict(channels=None, axes=None, pixel_um=None)|RESULTS[name].told
    channels = told['channels'] and list(told['channels'])
    assert as_refocused(OLD/'out'/name)==dict(channels=channels, axes=told['axes'], pixel_um=told['pixel_um'])
