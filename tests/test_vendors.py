"""CZI by bioio's own reader, and a file by another library that writes it; both are not among the requirements: pip install bioio bioio-czi pylibCZIrw"""
import numpy as np, pytest, tifffile
from refocus_nbdev.io.images import open_image

@pytest.fixture
def czi(tmp_path, blurred):
    "A CZI of two channels and three planes"
    pytest.importorskip('bioio_czi')
    pylibczi = pytest.importorskip('pylibCZIrw.czi')
    x = np.random.default_rng(0).integers(90, 4000, (2,3,*blurred.shape)).astype(np.uint16)
    x[0] = blurred
    with pylibczi.create_czi(str(tmp_path/'a.czi')) as c:
        for at in np.ndindex(2, 3): c.write(x[at][...,None], plane=dict(C=at[0], Z=at[1], T=0))
        c.write_metadata(document_name='a', channel_names={0:'DNA', 1:'actin'}, scale_x=0.645e-6, scale_y=0.645e-6, scale_z=2e-6)
    return tmp_path/'a.czi',x

def test_a_czi_becomes_an_ome_tiff(in_process, czi, tmp_path):
    path,x = czi
    with open_image(path) as f:
        assert (f.axes, f.shape, f.channels)==('TCZYX', (1,2,3,96,128), ['DNA','actin']) and abs(f.pixel_um-0.645)<1e-6
        for p in f.planes: assert (f.read(p)==x[p.where['C'],p.where['Z']]).all()
    said = in_process('run', path, '--channel', 'DNA', '--out', tmp_path/'out')
    assert said.code==0 and [p.name for p in (tmp_path/'out').iterdir()]==['a.ome.tif']
    with tifffile.TiffFile(tmp_path/'out'/'a.ome.tif') as t:
        y,pixels = t.asarray(),tifffile.xml2dict(t.ome_metadata)['OME']['Image']['Pixels']
    assert y.shape==x.shape and (y[0]!=x[0]).any() and (y[1]==x[1]).all()
    assert [c['Name'] for c in pixels['Channel']]==['DNA','actin'] and pixels['PhysicalSizeX']==0.645 and pixels['PhysicalSizeZ']==2
    assert '1 skipped' in in_process('run', path, '--channel', 'DNA', '--out', tmp_path/'out').text

def test_without_its_reader_it_says_what_to_install(in_process, tmp_path, monkeypatch):
    import sys
    (tmp_path/'a.nd2').write_bytes(b'anything')
    monkeypatch.setitem(sys.modules, 'bioio_nd2', None)
    said = in_process('run', tmp_path/'a.nd2', '--out', tmp_path/'out')
    assert said.code==1 and 'pip install bioio bioio-nd2' in said.text
