"""Makers' files by the libraries that read them, which are optional: pip install pylibCZIrw liffile mrc. CZI and DeltaVision are written by the same libraries, LIF here"""
import configparser, struct, sys
import numpy as np, pytest, tifffile
from conftest import ROOT
from refocus_nbdev.io.images import open_image
from refocus_nbdev.io.planes import ImageError
from refocus_nbdev.io.vendors import VENDORS

RNG = np.random.default_rng(0)

def write_czi(path, tiles, **about):
    "A CZI of tiles: (pixels, place on the canvas, number of the scene, place on the axes)"
    czi = pytest.importorskip('pylibCZIrw.czi')
    with czi.create_czi(str(path)) as c:
        for x,at,scene,place in tiles: c.write(x[...,None], plane=dict(C=0, Z=0, T=0)|place, location=at, scene=scene)
        if about: c.write_metadata(document_name='a', **about)
    return path

def noise(*shape): return RNG.integers(90, 4000, shape).astype(np.uint16)

SCALE = dict(scale_x=0.645e-6, scale_y=0.645e-6)

def test_a_czi_becomes_an_ome_tiff(in_process, blurred, tmp_path):
    x = noise(2, 3, *blurred.shape)
    x[0] = blurred
    tiles = [(x[at], (0,0), 0, dict(C=at[0], Z=at[1])) for at in np.ndindex(2, 3)]
    path = write_czi(tmp_path/'a.czi', tiles, channel_names={0:'DNA', 1:'actin'}, scale_z=2e-6, **SCALE)
    with open_image(path) as f:
        assert (f.axes, f.shape, f.channels, f.pixel_um)==('TCZYX', (1,2,3,96,128), ['DNA','actin'], 0.645)
        for p in f.planes: assert (f.read(p)==x[p.where['C'],p.where['Z']]).all()
    said = in_process('run', path, '--channel', 'DNA', '--out', tmp_path/'out')
    assert said.code==0 and [p.name for p in (tmp_path/'out').iterdir()]==['a.ome.tif']
    with tifffile.TiffFile(tmp_path/'out'/'a.ome.tif') as t:
        y,pixels = t.asarray(),tifffile.xml2dict(t.ome_metadata)['OME']['Image']['Pixels']
    assert y.shape==x.shape and (y[0]!=x[0]).any() and (y[1]==x[1]).all()
    assert [c['Name'] for c in pixels['Channel']]==['DNA','actin'] and pixels['PhysicalSizeX']==0.645 and pixels['PhysicalSizeZ']==2
    assert '1 skipped' in in_process('run', path, '--channel', 'DNA', '--out', tmp_path/'out').text

def test_a_mosaic_is_stitched(tmp_path):
    x = noise(3, 64, 64)
    places = (0,0),(64,0),(0,64)
    path = write_czi(tmp_path/'a.czi', [(tile, at, 0, {}) for tile,at in zip(x, places)], **SCALE)
    with open_image(path) as f:
        whole = f.read(f.planes[0])
        rows = f.rows(f.planes[0])
        assert len(f.planes)==1 and (rows[60:70]==whole[60:70]).all()
    assert whole.shape==(128,128) and not whole[64:,64:].any()
    for tile,(left,top) in zip(x, places): assert (whole[top:top+64,left:left+64]==tile).all()

def test_scenes_far_apart_are_series_and_tiles_far_apart_are_refused(tmp_path):
    x = noise(2, 64, 64)
    def written(name, scenes): return write_czi(tmp_path/name, [(x[i], (i*90_000,0), scenes[i], {}) for i in range(2)])
    with open_image(written('scenes.czi', (0,1))) as f:
        assert f.pixel_um is None and [p.shape for p in f.planes]==[(64,64)]*2
        assert all((f.read(p)==x[p.series]).all() for p in f.planes)
    with pytest.raises(ImageError, match='tiles far apart'): open_image(written('tiles.czi', (0,0)))

def test_colour_and_damage_get_sentences(tmp_path):
    czi = pytest.importorskip('pylibCZIrw.czi')
    with czi.create_czi(str(tmp_path/'colour.czi')) as c: c.write(np.zeros((64,64,3), np.uint8), plane=dict(C=0, Z=0, T=0))
    with pytest.raises(ImageError, match='colour'): open_image(tmp_path/'colour.czi')
    data = write_czi(tmp_path/'whole.czi', [(noise(64,64), (0,0), 0, {})], **SCALE).read_bytes()
    (tmp_path/'part.czi').write_bytes(data[:len(data)//2])
    with pytest.raises(ImageError, match='damaged, not complete'): open_image(tmp_path/'part.czi')

def write_lif(path, x, axes):
    "A LIF of one image, whose axes have the numbers that Leica gives them"
    number = dict(X=1, Y=2, Z=3, T=4, λ=5)
    dims = [(number[a], n, s) for a,n,s in zip(axes, x.shape, x.strides)][::-1]
    dims = ''.join(f'<DimensionDescription DimID="{d}" NumberOfElements="{n}" Origin="0" Length="{(n-1)*1e-7}" Unit="m" BitInc="0" '
                   f'BytesInc="{s}"/>' for d,n,s in dims)
    xml = ('<LMSDataContainerHeader Version="2"><Element Name="project"><Children><Element Name="R1"><Data><Image><ImageDescription>'
           '<Channels><ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" '
           'LUTName="Green" IsLUTInverted="0" BytesInc="0" BitInc="0"/></Channels>'
           f'<Dimensions>{dims}</Dimensions></ImageDescription></Image></Data><Memory Size="{x.nbytes}" MemoryBlockID="M1"/>'
           '<Children/></Element></Children></Element></LMSDataContainerHeader>').encode('utf-16-le')
    name = 'M1'.encode('utf-16-le')
    head = struct.pack('<IIBI', 0x70, len(xml)+5, 0x2A, len(xml)//2)+xml
    block = struct.pack('<IIBQBI', 0x70, len(name)+14, 0x2A, x.nbytes, 0x2A, 2)+name
    path.write_bytes(head+block+x.tobytes())
    return path

def test_a_lif_has_its_own_axes(tmp_path):
    pytest.importorskip('liffile')
    x = noise(3, 40, 48)
    with open_image(write_lif(tmp_path/'a.lif', x, 'ZYX')) as f:
        assert (f.axes, f.channels) == ('ZYX', ['Green']) and abs(f.pixel_um-0.1)<1e-9
        assert all((f.read(p)==x[p.where['Z']]).all() for p in f.planes) and f.place(f.planes[0])['scene']=='R1'
    for axes,problem in (('TZX','R1 is a section in X and Z'), ('λYX','R1 has 3 emission wavelengths')):
        with pytest.raises(ImageError, match=problem): open_image(write_lif(tmp_path/'b.lif', x, axes))

def test_a_deltavision_file(tmp_path):
    mrc = pytest.importorskip('mrc')
    x = noise(3, 40, 48)
    mrc.imsave(str(tmp_path/'a.dv'), x)
    with open_image(tmp_path/'a.dv') as f: planes = [f.read(p) for p in f.planes]
    assert (np.stack(planes)==x).all()

@pytest.mark.parametrize('suffix', [s for s in VENDORS if s!='.stk'])
def test_without_its_library_it_says_what_to_install(in_process, tmp_path, monkeypatch, suffix):
    maker = VENDORS[suffix]
    (tmp_path/f'a{suffix}').write_bytes(bytes(maker.start)+maker.bytes[0])
    monkeypatch.setitem(sys.modules, maker.library, None)
    said = in_process('run', tmp_path/f'a{suffix}', '--out', tmp_path/'out')
    assert said.code==1 and f"pip install 'refocus_nbdev[{suffix[1:]}]'" in ' '.join(said.text.split())
    settings = configparser.ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    assert settings['DEFAULT'][f'{suffix[1:]}_requirements'].split('>')[0]==maker.library.split('.')[0]
    assert f'"{suffix[1:]}"' in (ROOT/'setup.py').read_text()
