"""Damaged and odd input: the outcome is a result or a sentence, whatever the bytes; REFOCUS_FUZZ=20 tries twenty times as much"""
import os, random, resource, signal
from contextlib import contextmanager
import numpy as np, pytest, tifffile, torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from conftest import contents
from refocus_nbdev.refocus.jobs import Job
from refocus_nbdev.refocus.jobs import run_job
from refocus_nbdev.refocus.files import Refocuser
from refocus_nbdev.io.images import read_image
from refocus_nbdev.learn.networks import GuidedUnet, ModelError
from refocus_nbdev.learn.modelfile import read_model, write_model

MORE = int(os.environ.get('REFOCUS_FUZZ', 1))
KINDS = ['plain.tif', 'lzw.tif', 'tiles.tif', 'big.tif', 'imagej.tif', 'stack.tif', 'ome.ome.tif', 'pyramid.ome.tif', 'grey.png', 'grey16.png']

@pytest.fixture(scope='module')
def small():
    "A network that costs next to nothing"
    torch.manual_seed(0)
    model = GuidedUnet((4,4), (0,0), taps=((1,2e-3),)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return Refocuser(model, dict(name='small', pixel_um=0.645), 'cpu')

@pytest.fixture(scope='module')
def valid(tmp_path_factory):
    "One file of each kind"
    folder,x = tmp_path_factory.mktemp('valid'),np.random.default_rng(0).integers(90, 4000, (2,3,40,48)).astype(np.uint16)
    grey = dict(photometric='minisblack')
    tifffile.imwrite(folder/'plain.tif', x[0,0], **grey, resolution=(15500,15500), resolutionunit='CENTIMETER')
    tifffile.imwrite(folder/'lzw.tif', x[0,0], **grey, compression='lzw', predictor=True, rowsperstrip=7)
    tifffile.imwrite(folder/'tiles.tif', x[0,0].astype(np.float32), **grey, compression='zlib', tile=(16,16), byteorder='>')
    tifffile.imwrite(folder/'big.tif', x[0], **grey, bigtiff=True, compression='zstd')
    tifffile.imwrite(folder/'imagej.tif', x, imagej=True, metadata={'axes':'ZCYX', 'unit':'um', 'Info':'an info'})
    tifffile.imwrite(folder/'stack.tif', x, imagej=True, metadata={'axes':'ZCYX'}, truncate=True)
    tifffile.imwrite(folder/'ome.ome.tif', x, **grey, metadata={'axes':'CZYX', 'PhysicalSizeX':.645, 'PhysicalSizeXUnit':'µm', 'Channel':{'Name':['DNA','actin']}})
    with tifffile.TiffWriter(folder/'pyramid.ome.tif', ome=True) as t:
        t.write(x[0,0], subifds=1, tile=(16,16), **grey, metadata={'axes':'YX'})
        t.write(x[0,0,::2,::2], subfiletype=1, tile=(16,16), **grey)
    Image.fromarray((x[0,0]>>4).astype(np.uint8)).save(folder/'grey.png')
    Image.fromarray(x[0,0]).save(folder/'grey16.png')
    return folder

def mutated(data, rng):
    "The bytes, damaged in one to three ways"
    data = bytearray(data)
    for _ in range(rng.choice((1,1,2,3))):
        at = rng.randrange(min(len(data), rng.choice((64, 600, len(data)))))
        how = rng.randrange(6)
        if how==0: data[at] = rng.randrange(256)
        elif how==1: data[at] ^= 1<<rng.randrange(8)
        elif how==2: data[at:at+4] = rng.choice((b'\0\0\0\0', b'\xff\xff\xff\xff', b'\0\0\0\x7f', b'\x40\x42\x0f\0', b'\x01\0\0\0'))
        elif how==3: del data[rng.randrange(1, len(data)):]
        elif how==4: data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        else: data[at:at+16] = data[(b := rng.randrange(len(data))):b+16]
        if not data: data = bytearray(b'I')
    return bytes(data)

@contextmanager
def no_longer_than(seconds):
    def late(*args): raise TimeoutError(f'still at it after {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

def outcome(small, path, out):
    "What becomes of a file: a result of the same kind, or a sentence that names the file, and nothing else in the folder"
    with no_longer_than(20): job = run_job(Job(path, out/path.name), small)
    assert job.status in ('done','failed') and 'should not happen' not in job.note, job.note
    if job.status=='failed':
        assert str(path) in job.note or str(out/path.name) in job.note
        assert contents(out)=={}
    else:
        assert contents(out).keys()=={path.name}
        assert read_image(out/path.name).pixels.shape==read_image(path).pixels.shape
        (out/path.name).unlink()
    return job.status

@pytest.mark.parametrize('name', KINDS)
def test_damaged_images(small, valid, tmp_path, name):
    rng,whole,peak = random.Random(name),(valid/name).read_bytes(),resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path/'out').mkdir()
    assert outcome(small, valid/name, tmp_path/'out')=='done'
    became = []
    for i in range(200*MORE):
        (tmp_path/name).write_bytes(mutated(whole, rng))
        became.append(outcome(small, tmp_path/name, tmp_path/'out'))
    assert {'done','failed'}==set(became)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-peak < 1.5e6

def test_damaged_models(tmp_path, small):
    rng,path = random.Random(0),tmp_path/'small.safetensors'
    whole = write_model(path, small.model, dict(small.card, network='guided_unet', args=dict(widths=[4,4], blocks=[0,0], taps=[[1,2e-3]]), scale=dict(low=1, high=99.8))).read_bytes()
    x,became = np.random.default_rng(0).integers(90, 4000, (40,48)).astype(np.uint16),[]
    for i in range(600*MORE):
        path.write_bytes(mutated(whole, rng))
        try:
            with no_longer_than(20): became.append(Refocuser.load(path, 'cpu').refocus(x).shape)
        except ModelError as e: became.append(str(path) in str(e))
    assert (40,48) in became and True in became and False not in became

def claims(path, shape, **kwargs):
    "A TIFF that says it is larger than it is"
    tifffile.imwrite(path, np.zeros((16,16), np.uint16), photometric='minisblack', metadata=None, **kwargs)
    with tifffile.TiffFile(path, mode='r+') as t:
        tags = t.pages[0].tags
        for name,n in (('ImageLength',shape[0]), ('ImageWidth',shape[1]), ('RowsPerStrip',shape[0])):
            if name in tags: tags[name].overwrite(n)

def tiles_that_claim(path, side):
    tifffile.imwrite(path, np.zeros((64,64), np.uint16), photometric='minisblack', metadata=None, tile=(16,16), compression='zlib')
    with tifffile.TiffFile(path, mode='r+') as t:
        for name in ('TileWidth','TileLength'): t.pages[0].tags[name].overwrite(side)

def cyclic(path):
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 99, (16,16)).astype(np.uint16), photometric='minisblack', metadata=None, byteorder='<')
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], 'little')
    end = first+2+12*int.from_bytes(data[first:first+2], 'little')
    data[end:end+4] = data[4:8]
    path.write_bytes(data)

def zarr_that_claims(path, shape, chunk=512):
    zarr = pytest.importorskip('zarr')
    g = zarr.open_group(str(path), mode='w', zarr_format=2)
    g.create_array('0', shape=shape, chunks=(*[1]*(len(shape)-2), chunk, chunk), dtype='uint16')
    g.attrs['multiscales'] = [dict(version='0.4', axes=[dict(name=n, type='space') for n in 'tczyx'[-len(shape):]], datasets=[dict(path='0', coordinateTransformations=[dict(type='scale', scale=[1.]*len(shape))])])]

HOSTILE = {
    'a million by a million.tif': (lambda p: claims(p, (1_000_000, 1_000_000)), 'damaged'),
    'the same, compressed.tif': (lambda p: claims(p, (1_000_000, 1_000_000), compression='zlib'), 'too large'),
    'the same in tiles.tif': (lambda p: claims(p, (1_000_000, 1_000_000), tile=(16,16)), 'damaged'),
    'tiles larger than it.tif': (lambda p: tiles_that_claim(p, 16_000), 'tiles of 512 MB for an image of 0.0082 MB'),
    'tiles beyond measure.tif': (lambda p: tiles_that_claim(p, 48_000), 'too large'),
    'longer than it is.tif': (lambda p: claims(p, (40, 16)), 'complete'),
    'a bomb.png': (lambda p: Image.fromarray(np.zeros((20_000,20_000), np.uint8)).save(p, compress_level=1), 'DecompressionBomb'),
    'a bomb.tif': (lambda p: claims(p, (60_000, 60_000), compression='zlib'), 'too large'),
    'no page.tif': (lambda p: p.write_bytes(b'II*\0\0\0\0\0'), 'no image'),
    'nothing.tif': (lambda p: p.write_bytes(b''), 'cannot be read'),
    'no number.tif': (lambda p: tifffile.imwrite(p, np.full((9,9), np.nan, np.float32)), 'NaN'),
    'infinite.tif': (lambda p: tifffile.imwrite(p, np.array([[1,np.inf],[2,3]], np.float32)), 'infinite'),
    'huge numbers.tif': (lambda p: tifffile.imwrite(p, np.array([[1,3e38],[2,-3e38]], np.float32)), 'too large'),
    'slide.zarr': (lambda p: zarr_that_claims(p, (1_000_000, 1_000_000)), 'all but empty'),
    'chunks larger than it.zarr': (lambda p: zarr_that_claims(p, (64, 64), 12_000), 'chunks of 288 MB for an image of 0.0082 MB'),
    'many planes.zarr': (lambda p: zarr_that_claims(p, (100_000, 100_000, 8, 8)), 'planes'),
}

@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files_get_a_sentence(small, tmp_path, name):
    make,said = HOSTILE[name]
    make(tmp_path/name)
    (tmp_path/'out').mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_longer_than(20): job = run_job(Job(tmp_path/name, tmp_path/'out'/name), small)
    assert job.status=='failed' and name in job.note and said in job.note
    assert not list((tmp_path/'out').iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before < 1e6

rng = np.random.default_rng(0)
ODD = {
    'cyclic.tif': cyclic,
    'one pixel.tif': lambda p: tifffile.imwrite(p, np.array([[7]], np.uint16)),
    'one row.tif': lambda p: tifffile.imwrite(p, rng.integers(0, 99, (1,300)).astype(np.uint8), photometric='minisblack'),
    'one column.tif': lambda p: tifffile.imwrite(p, rng.integers(0, 99, (300,1)).astype(np.float32), photometric='minisblack'),
    'below zero.tif': lambda p: tifffile.imwrite(p, rng.normal(-500, 9, (30,40)).astype(np.float32), photometric='minisblack'),
    'saturated.tif': lambda p: tifffile.imwrite(p, np.where(rng.random((30,40))>0.5, 65535, 100).astype(np.uint16), photometric='minisblack'),
    '12 bits in 16.tif': lambda p: tifffile.imwrite(p, rng.integers(0, 4096, (30,40)).astype(np.uint16), photometric='minisblack'),
    'white is dark.tif': lambda p: tifffile.imwrite(p, rng.integers(0, 255, (30,40)).astype(np.uint8), photometric='miniswhite'),
    'constant.tif': lambda p: tifffile.imwrite(p, np.full((30,40), 7, np.uint8), photometric='minisblack'),
    '300 pages.tif': lambda p: tifffile.imwrite(p, rng.integers(0, 99, (300,9,9)).astype(np.uint8), photometric='minisblack'),
}

@pytest.mark.parametrize('name', ODD)
def test_odd_files_are_refocused(small, tmp_path, name):
    ODD[name](tmp_path/name)
    (tmp_path/'out').mkdir()
    assert outcome(small, tmp_path/name, tmp_path/'out')=='done'

@settings(max_examples=150*MORE, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([np.uint8, np.uint16, np.float32]).flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=2, max_dims=3, max_side=24))))
def test_any_array_is_a_result_or_a_sentence(small, tmp_path, x):
    (tmp_path/'out').mkdir(exist_ok=True)
    tifffile.imwrite(tmp_path/'x.tif', x, photometric='minisblack')
    became = outcome(small, tmp_path/'x.tif', tmp_path/'out')
    assert became=='done' or not (np.abs(x)<1e30).all() or x.shape[-1] in (3,4)
