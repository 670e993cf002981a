"""Series, names, sizes and axes of files: read as what is meant, or refused with a sentence; and what is not refocused is copied as it is"""
import struct
import numpy as np, pytest, tifffile
from scipy.ndimage import gaussian_filter
from refocus_nbdev.refocus.jobs import Job
from refocus_nbdev.refocus.jobs import run_job
from refocus_nbdev.io.planes import ImageError
from refocus_nbdev.io.provenance import read_provenance
from refocus_nbdev.refocus.files import provenance_of, shared_scale
from refocus_nbdev.io.images import chosen_channels, copy_image, open_image, read_image
from test_fuzz import small

rng = np.random.default_rng(0)
SHOWN = gaussian_filter(rng.normal(size=(2,64,64)), (0,4,4)) # blurred structure, as noise alone comes back unchanged
X = (500+3000*SHOWN/np.ptp(SHOWN)+rng.normal(0, 5, SHOWN.shape)+1500).astype(np.uint16)
GREY = dict(photometric='minisblack')

def named(*names, um=.645, **more): return {'axes':'CYX', 'Channel':{'Name':list(names)}, 'PhysicalSizeX':um, 'PhysicalSizeXUnit':'µm', **more}

def ome(path, *series):
    "An OME-TIFF of X in each series, whose metadata are given"
    with tifffile.TiffWriter(path, ome=True) as t:
        for m in series: t.write(X[:len(m['Channel']['Name'])], **GREY, metadata=m)
    return path

def zarr_image(group, names, um=.645):
    "X and a smaller level, which is not made of it"
    sets = [dict(path=str(i), coordinateTransformations=[dict(type='scale', scale=[1., um*2**i, um*2**i])]) for i in range(2)]
    axes = [dict(name='c', type='channel'), *(dict(name=a, type='space', unit='micrometer') for a in 'yx')]
    for i,x in enumerate((X, X[:,::2,::2])): group.create_array(str(i), data=x, chunks=(1,32,32))
    group.attrs['ome'] = dict(version='0.5', multiscales=[dict(axes=axes, datasets=sets)], omero=dict(channels=[dict(label=n) for n in names]))

def zarr_of(path, *series):
    "A collection of images, of names and pixel size"
    root = pytest.importorskip('zarr').open_group(str(path), mode='w', zarr_format=3)
    for i,(names,um) in enumerate(series): zarr_image(root.create_group(str(i)), names, um)
    return path

def series(path, *about):
    "A file of some series, of the names of their channels and the size of their pixels"
    return zarr_of(path, *about) if path.suffix=='.zarr' else ome(path, *(named(*n, um=um) for n,um in about))

def job(path, small, defocus_um=None, **how):
    (path.parent/'out').mkdir(exist_ok=True)
    return run_job(Job(path, path.parent/'out'/path.name, defocus_um=defocus_um), small, **how)

@pytest.mark.parametrize('name', ['a.ome.tif', 'a.zarr'])
def test_a_channel_goes_by_its_name_in_every_series(small, tmp_path, name):
    path = series(tmp_path/name, (('DNA','actin'), .645), (('Actin','DNA'), .645))
    assert job(path, small, channels=['DNA'], defocus_um=20).pixels==2*X[0].size
    with open_image(path) as f, open_image(tmp_path/'out'/name) as g:
        assert f.channels==['DNA','actin'] and [f.place(p)['channel'] for p in f.planes]==['DNA','actin','actin','DNA']
        assert [np.array_equal(f.read(p), g.read(q)) for p,q in zip(f.planes, g.planes)]==[False,True,True,False]

@pytest.mark.parametrize('name', ['a.ome.tif', 'a.zarr'])
def test_series_of_other_pixels_are_refused_unless_one_size_is_given(small, tmp_path, name):
    path = series(tmp_path/name, (('DNA','actin'), .645), (('DNA','actin'), .3225))
    assert '0.645 um and 0.3225 um' in job(path, small).note
    assert job(path, small, pixel_um=.645).status=='done'
    assert read_image(path).pixel_um==pytest.approx(.645)

def test_a_name_of_two_channels_is_not_enough(tmp_path):
    with open_image(ome(tmp_path/'a.ome.tif', named('DNA','dna'))) as f:
        with pytest.raises(ImageError, match='2 channels are called DNA; choose by number'): chosen_channels(f, ['DNA'])
        assert chosen_channels(f, [2])=={1}

def test_names_that_are_known_are_kept(tmp_path):
    path = ome(tmp_path/'a.ome.tif', named('','actin'))
    with open_image(path) as f: assert (f.channels, chosen_channels(f, ['actin'])) == (['1','actin'], {1})
    assert read_image(path).metadata=={'Channel':{'Name':['','actin']}}

@pytest.mark.parametrize('names,given,said', [(('DNA','actin'), ['2','dna'], ['DNA','actin']), (('DNA','dna'), ['2'], ['2']), (('a, b','c;d'), [1,'c;d'], ['1','2']), (('µ-DNA','x'), ['µ-dna'], ['µ-DNA'])])
def test_a_result_names_its_channels_as_its_file_does(small, tmp_path, monkeypatch, names, given, said):
    monkeypatch.setattr(small, 'own_blur', 0.27)
    path = ome(tmp_path/'a.ome.tif', named(*names))
    made = provenance_of(small, path, channels=given)
    assert list(read_provenance(made.text).channels)==said==list(read_provenance(made.sentence).channels)
    with open_image(path) as f: assert chosen_channels(f, said)==chosen_channels(f, given)

def plain(**kwargs): return lambda p: tifffile.imwrite(p, X[0], **GREY, **kwargs)
def sized(**m): return lambda p: tifffile.imwrite(p, X[0], **GREY, ome=True, metadata=dict(m, axes='YX'))

SIZES = {
    'metres': (sized(PhysicalSizeX=6.45e-7, PhysicalSizeXUnit='m'), .645),
    'angstrom': (sized(PhysicalSizeX=6450, PhysicalSizeXUnit='Å'), .645),
    'nearly square': (sized(PhysicalSizeX=.645, PhysicalSizeY=.646), .645),
    'in words': (lambda p: tifffile.imwrite(p, X[0], imagej=True, resolution=(1/.645,1/.645), metadata={'unit':'micrometer'}), .645),
    'per centimetre': (plain(resolution=(15504,15504), resolutionunit='CENTIMETER'), .645),
    'for printing': (plain(resolution=(300,300), resolutionunit='INCH'), None),
    'for printing, metric': (plain(resolution=(236.22,236.22), resolutionunit='CENTIMETER'), None),
}
@pytest.mark.parametrize('name', SIZES)
def test_size_of_pixels(tmp_path, name):
    make,um = SIZES[name]
    make(tmp_path/'a.tif')
    with open_image(tmp_path/'a.tif') as f: assert f.pixel_um==(um and pytest.approx(um, rel=1e-4))

def test_pixels_that_are_not_square_are_refused_unless_a_size_is_given(small, in_process, tmp_path):
    sized(PhysicalSizeX=.645, PhysicalSizeY=1.29)(tmp_path/'a.ome.tif')
    assert '0.645 um wide and 1.29 um high' in job(tmp_path/'a.ome.tif', small).note
    assert [job(tmp_path/'a.ome.tif', small, pixel_um=.645).status for _ in range(2)]==['done','skipped']
    assert in_process('run', tmp_path/'a.ome.tif', '--pixel-um', '.645', '--dry-run', '--out', tmp_path/'new').code==0
    said = in_process('info', tmp_path/'a.ome.tif')
    assert said.code==0 and '0.645 um wide' in said.text

def test_axes_that_do_not_end_in_y_and_x(tmp_path):
    tifffile.imwrite(tmp_path/'a.tif', np.stack([X[0]]*5, -1), **GREY, metadata={'axes':'YXZ'})
    with pytest.raises(ImageError, match='axes YXZ; the last two must be Y and X'): open_image(tmp_path/'a.tif')
    with open_image(tmp_path/'a.tif', 'zyx') as f: assert len(f.planes)==64

def pyramid(path, x, level, **kwargs):
    with tifffile.TiffWriter(path, ome=True) as t:
        t.write(X, **GREY, metadata=named('DNA','actin'), tile=(32,32), subifds=1)
        t.write(X[:,::2,::2], **GREY, tile=(32,32), subfiletype=1)
        t.write(x, tile=(32,32), subifds=1, metadata={}, **kwargs)
        t.write(level, tile=(32,32), subfiletype=1, **kwargs)

def test_levels_of_a_tiff_that_are_not_refocused_stay(tmp_path):
    rgb = rng.integers(0, 255, (64,64,3)).astype(np.uint8)
    pyramid(tmp_path/'a.ome.tif', rgb, rgb[::2,::2], photometric='rgb')
    with open_image(tmp_path/'a.ome.tif') as f: copy_image(f, tmp_path/'b.ome.tif', lambda p: None if p.channel else f.read(p)+1, '')
    with tifffile.TiffFile(tmp_path/'b.ome.tif') as t:
        dna,actin = t.series[0].levels[1].asarray()
        assert np.array_equal(actin, X[1,::2,::2]) and not np.array_equal(dna, X[0,::2,::2])
        assert np.array_equal(t.series[1].levels[1].asarray(), rgb[::2,::2])

def test_levels_of_a_zarr_that_are_not_refocused_stay(small, tmp_path):
    zarr_of(tmp_path/'a.zarr', (('DNA','actin'), .645))
    job(tmp_path/'a.zarr', small, channels=['DNA'])
    for level in '01':
        a,b = ({p.name: p.read_bytes() for p in (d/'a.zarr'/'0'/level/'c'/'1').rglob('*') if p.is_file()} for d in (tmp_path, tmp_path/'out'))
        assert a==b

def test_two_images_in_one_group(tmp_path):
    zarr_of(tmp_path/'a.zarr', (('DNA','actin'), .645))
    import zarr
    group = zarr.open_group(str(tmp_path/'a.zarr'), mode='r+')['0']
    about = dict(group.attrs['ome'])
    group.attrs['ome'] = about | dict(multiscales=about['multiscales']*2)
    with pytest.raises(ImageError, match='/0 holds 2 multiscales'): open_image(tmp_path/'a.zarr')

def test_an_array_alone(tmp_path):
    pytest.importorskip('zarr').open_array(str(tmp_path/'a.zarr'), mode='w', shape=(8,8), dtype='u2')
    with pytest.raises(ImageError, match='an array alone'): open_image(tmp_path/'a.zarr')

@pytest.mark.parametrize('first', [np.uint16, np.uint32])
def test_labels_beside_an_image_stay(tmp_path, small, first):
    second = np.uint32 if first==np.uint16 else np.uint16
    with tifffile.TiffWriter(tmp_path/'a.ome.tif', ome=True) as t:
        for dtype in (first, second): t.write(X[0].astype(dtype), **GREY, metadata={'Name': np.dtype(dtype).name})
    with open_image(tmp_path/'a.ome.tif') as f: assert (f.dtype, len(f.planes), len(f.unlike))==(np.uint16, 1, 1)
    done = job(tmp_path/'a.ome.tif', small)
    assert done.status=='done' and 'uint32' in done.note
    labels, = [s.asarray() for s in tifffile.TiffFile(done.target).series if s.dtype==np.uint32]
    assert (labels==X[0]).all()

def test_run_again_where_a_name_is_not_ascii(small, tmp_path):
    path = ome(tmp_path/'a.ome.tif', named('µ-DNA','β-tubulin'))
    assert [job(path, small, channels=['µ-DNA']).status for _ in range(2)]==['done','skipped']
    assert r'only channel \xb5-DNA' in read_image(tmp_path/'out'/'a.ome.tif').software

def test_a_second_description_is_kept(tmp_path):
    "As MicroManager writes it"
    about = 'ImageJ=1.52\nunit=um\n'
    ome(tmp_path/'a.ome.tif', named('DNA'))
    with tifffile.TiffFile(tmp_path/'a.ome.tif') as t: xml = t.ome_metadata
    tifffile.imwrite(tmp_path/'a.ome.tif', X[0], **GREY, description=xml.encode(), metadata=None, byteorder='<', extratags=[(271, 2, 0, about, True)])
    data = bytearray((tmp_path/'a.ome.tif').read_bytes())
    at = data.index(struct.pack('<HH', 271, 2))
    data[at:at+2] = struct.pack('<H', 270)
    (tmp_path/'a.ome.tif').write_bytes(data)
    with open_image(tmp_path/'a.ome.tif') as f: copy_image(f, tmp_path/'b.ome.tif', f.rows, 'a network')
    with tifffile.TiffFile(tmp_path/'b.ome.tif') as t: assert [o.value for o in t.pages[0].tags if o.code==270][1:]==[about.strip()] and 'a network' in t.ome_metadata

@pytest.mark.parametrize('shape', [(5,8,1), (2,1,1), (2,3,4,1)])
def test_axes_of_one_element_behind_y_and_x_are_left_out(tmp_path, shape):
    x = rng.integers(0, 99, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path/'a.tif', x, **GREY)
    im = read_image(tmp_path/'a.tif')
    assert im.axes[-2:]=='YX' and np.array_equal(im.pixels, x.squeeze(-1) if shape!=(2,1,1) else x[:,0])

def test_names_of_a_part_of_a_file_are_believed_where_they_fit(tmp_path):
    for names,read in ((('DNA',), ['DNA']), (('DNA','actin'), ['1'])):
        ome(tmp_path/'a.ome.tif', named(*names))
        with tifffile.TiffFile(tmp_path/'a.ome.tif') as t: xml = t.ome_metadata
        xml = xml.replace('<TiffData IFD="0"', '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData><TiffData IFD="0"')
        tifffile.imwrite(tmp_path/'b.ome.tif', X[0], **GREY, description=xml.encode(), metadata=None)
        with open_image(tmp_path/'b.ome.tif') as f: assert f.tif.series[0].kind!='ome' and f.channels==read

def test_scales_are_shared_by_the_names_of_channels(small, tmp_path):
    shared = shared_scale(small, ome(tmp_path/'a.ome.tif', named('DNA','actin')))
    def scales(path):
        with open_image(path) as f: return [shared.of(f, c) for c in range(len(f.channels))]
    dna,actin = scales(tmp_path/'a.ome.tif')
    assert scales(ome(tmp_path/'b.ome.tif', named('actin','dna')))==[actin,dna] and dna is not actin
    assert scales(ome(tmp_path/'c.ome.tif', named('ER','DNA')))==[None,dna]
    tifffile.imwrite(tmp_path/'d.tif', X, **GREY)
    assert len(scales(tmp_path/'d.tif'))==1 and scales(tmp_path/'d.tif')[0] is dna

def test_messages_of_tifffile_are_dropped_only_while_we_read(tmp_path, caplog):
    path = tmp_path/'odd.tif'
    tifffile.imwrite(path, X[0], **GREY, metadata=None, byteorder='<')
    software,no_type = struct.pack('<HH', 305, 2),struct.pack('<HH', 305, 99)
    path.write_bytes(path.read_bytes().replace(software, no_type, 1))
    with open_image(path) as f: copy_image(f, tmp_path/'copy.tif', f.rows, 'a network')
    assert not caplog.records and read_image(tmp_path/'copy.tif').software=='a network'
    with tifffile.TiffFile(path) as t: assert t.pages[0].shape==X[0].shape
    assert [r.name for r in caplog.records]==['tifffile']
