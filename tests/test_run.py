import json, os, shutil, signal, subprocess, sys, time
from functools import partial
from types import SimpleNamespace
import numpy as np, pytest, tifffile
from PIL import Image
from conftest import ENV, SAMPLE, command, contents
from refocus_nbdev.cli.__main__ import app
from refocus_nbdev.io.tables import UsageError
from refocus_nbdev.refocus.jobs import plan_run
from refocus_nbdev.io.images import read_image
from refocus_nbdev.learn.modelfile import model_path, shipped_models
from refocus_nbdev.learn.modelfile import read_card

ODD = {'text.tif':'cannot be read', 'cut.tif':'cannot be read', 'rgb.png':'colour', 'nan.tif':'NaN', 'gone.tif':'no such file', 'empty':'no images here'}

@pytest.fixture(scope='module')
def refocus(in_process):
    "Starting a process takes seconds: only what is about processes has one"
    return in_process

@pytest.fixture(scope='module')
def odd(tmp_path_factory, blurred, process):
    "One run over good and odd files: what it said, and its folders"
    tmp = tmp_path_factory.mktemp('odd')
    src = tmp/'in'
    src.mkdir(); (src/'empty').mkdir()
    tifffile.imwrite(src/'good.tif', blurred)
    tifffile.imwrite(src/'black.tif', np.zeros((40,50), np.uint16))
    tifffile.imwrite(src/'dot.tif', np.full((1,1), 7, np.uint8))
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5,7)).save(src/'small.png')
    (src/'text.tif').write_text('not an image')
    (src/'cut.tif').write_bytes((src/'good.tif').read_bytes()[:9000])
    Image.fromarray(np.zeros((4,4,3), np.uint8)).save(src/'rgb.png')
    tifffile.imwrite(src/'nan.tif', np.array([[1,np.nan],[2,3]], np.float32))
    before = contents(src)
    said = process('run', src, src/'gone.tif', src/'empty', '--out', tmp/'out')
    assert contents(src)==before
    return said, src, tmp/'out'

def test_odd_input_fails_the_command(odd): assert odd[0].code==1

@pytest.mark.parametrize('name', ODD)
def test_odd_input_gets_a_sentence(odd, name):
    about = [l for l in odd[0].text.splitlines() if f'in/{name}' in l]
    assert len(about)==1 and ODD[name] in about[0]

def test_good_input_beside_it_is_done(odd):
    said,src,out = odd
    assert contents(out).keys()=={'good.tif', 'black.tif', 'dot.tif', 'small.png'}
    for p in out.iterdir():
        a,b = read_image(src/p.name).pixels, read_image(p).pixels
        assert (a.shape, a.dtype)==(b.shape, b.dtype)

def test_a_constant_image_passes_with_a_warning(odd):
    said,src,out = odd
    assert not read_image(out/'black.tif').pixels.any()
    assert [l for l in said.text.splitlines() if 'black.tif' in l and 'constant' in l]

def test_the_good_image_came_closer_to_the_one_in_focus(odd, sharp):
    said,src,out = odd
    before,after = (np.abs(read_image(o/'good.tif').pixels - sharp.astype(float)).mean() for o in (src, out))
    assert after < 0.9*before

def test_nothing_found_is_a_failure(refocus, tmp_path):
    said = refocus('run', tmp_path/'*.tif', '--out', tmp_path/'out')
    assert said.code==2 and '*.tif' in said.text

def test_results_never_go_where_the_images_are(refocus, folder, tmp_path):
    (tmp_path/'link').symlink_to(folder)
    before = contents(folder)
    for given,out in ((folder, folder), (folder/'*.tif', tmp_path/'link')):
        said = refocus('run', given, '--out', out)
        assert said.code==2 and 'another folder' in said.text
    assert contents(folder)==before

@pytest.mark.parametrize('given', ['in', 'in/*.tif', 'in/field0.tif', 'link', 'link/*.tif'])
@pytest.mark.parametrize('out', ['in', 'in/../in', 'link'])
def test_a_folder_of_images_is_known_by_any_name(folder, tmp_path, given, out):
    (tmp_path/'link').symlink_to(folder)
    with pytest.raises(UsageError): plan_run([str(tmp_path/given)], tmp_path/out)

def test_a_link_in_the_results_does_not_lead_to_the_image(refocus, folder, tmp_path):
    before = contents(folder)
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'field0.tif').symlink_to(folder/'field0.tif')
    refocus('run', folder, '--out', tmp_path/'out', '--overwrite')
    assert contents(folder)==before

def test_an_image_that_is_a_link_is_not_overwritten(refocus, folder, tmp_path):
    (tmp_path/'links').mkdir()
    (tmp_path/'links'/'field0.tif').symlink_to(folder/'field0.tif')
    before = contents(folder)
    refocus('run', tmp_path/'links', '--out', folder, '--overwrite')
    assert contents(folder)==before

def test_globs_work_without_a_shell(refocus, folder, tmp_path):
    said = refocus('run', folder/'field[0-9].tif', '--out', tmp_path/'out')
    assert said.code==0 and contents(tmp_path/'out').keys()=={'field0.tif', 'field1.tif'}

def test_own_results_are_no_inputs(refocus, folder, tmp_path):
    (folder/'deep').mkdir()
    shutil.copy(folder/'field0.tif', folder/'deep')
    out = folder/'refocused'
    refocus('run', folder/'**'/'*.tif', '--out', out, '--uncertainty')
    first = contents(out)
    again = refocus('run', folder/'**'/'*.tif', '--out', out, '--uncertainty')
    assert again.code==0 and '0 done, 3 skipped' in again.text and contents(out)==first
    named = refocus('run', out/'field0.tif', '--out', out)
    assert named.code==2 and 'another folder' in named.text and contents(out)==first

def test_same_name_twice_is_refused(refocus, folder, tmp_path):
    shutil.copytree(folder, tmp_path/'more')
    said = refocus('run', folder, tmp_path/'more', '--out', tmp_path/'out', '--dry-run')
    assert said.code==1 and said.text.count('same name')==2

def test_dry_run_writes_nothing(refocus, folder, tmp_path):
    said = refocus('run', folder, '--out', tmp_path/'out', '--dry-run')
    assert said.code==0 and 'field1.tif' in said.text
    assert not (tmp_path/'out').exists()

def test_a_tree_of_folders_stays_one(in_process, folder, tmp_path):
    (folder/'deep').mkdir()
    shutil.copy(folder/'field0.tif', folder/'deep')
    assert in_process('run', folder, '--recursive', '--out', tmp_path/'out').code==0
    assert {p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.tif')}=={'field0.tif', 'field1.tif', 'deep/field0.tif'}

def test_images_in_a_list(in_process, folder, tmp_path):
    (folder/'some.csv').write_text('file,defocus_um\nfield1.tif,30\ngone.tif,30\n')
    said = in_process('run', folder/'some.csv', '--defocus-um', folder/'some.csv', '--out', tmp_path/'out')
    assert said.code==1 and 'gone.tif: there is no such file' in said.text and 'told 30 um' in read_image(tmp_path/'out'/'field1.tif').software

def test_json(in_process, folder, tmp_path):
    (folder/'text.tif').write_text('not an image')
    said = in_process('run', folder, '--json', '--out', tmp_path/'out')
    got = json.loads(said.text)
    assert said.code==1 and [f['status'] for f in got['files']]==['done','done','failed'] and got['megapixels_per_second']>0
    assert got['files'][0]['pixels']==tifffile.imread(folder/'field0.tif').size and 'text.tif' in got['files'][2]['note']

def test_what_was_decided_is_said(refocus, folder, stacks, tmp_path):
    args = 'run', folder, stacks/'in'/'ome.tif', '--channel', 1, '--out', tmp_path/'out'
    planned = json.loads(refocus(*args, '--dry-run', '--json').text)['files']
    said = refocus(*args, '--json')
    about = [[f[k] for k in ('axes','channels','pixel_um','sized_by')] for f in json.loads(said.text)['files']]
    assert about==[['YX', ['1'], 0.645, 'model']]*2 + [['TCYX', ['DNA'], 0.645, 'file']]
    assert [[f[k] for k in ('axes','channels','sized_by')] for f in planned]==[[a,c,b] for a,c,_,b in about]
    assert [[f[k] for k in ('status','axes','channels','pixel_um','sized_by')] for f in json.loads(refocus(*args, '--json').text)['files']]==[['skipped', *a] for a in about]
    said = refocus(*args, '--overwrite', '--pixel-um', 0.64).text
    assert '1 file: axes TCYX; channels refocused: DNA; pixels of 0.64 um by --pixel-um' in said and said.count('2 files: axes YX; pixels of 0.64 um')==1

def test_a_preview_of_a_file_with_two_sizes_keeps_its_axes(refocus, tmp_path):
    sizes = dict(PhysicalSizeX=.5, PhysicalSizeXUnit='µm', PhysicalSizeY=.6, PhysicalSizeYUnit='µm')
    tifffile.imwrite(tmp_path/'oblong.ome.tif', np.zeros((2,5,7), np.uint16), ome=True, metadata=dict(axes='ZYX', **sizes))
    said = refocus('run', tmp_path/'oblong.ome.tif', '--dry-run', '--json')
    about = json.loads(said.text)['files'][0]
    assert said.code==1 and [about[k] for k in ('status','axes','channels','pixel_um','sized_by')]==['failed', 'ZYX', ['1'], None, None]

def small_zarr(path, x, axes='cyx'):
    "An OME-Zarr, of one or two channels if it has any"
    group = pytest.importorskip('zarr').open_group(str(path), mode='w')
    group.create_array('0', data=x, chunks=(*[1]*(x.ndim-2),32,32))
    group.attrs['ome'] = dict(version='0.5', multiscales=[dict(axes=[dict(name=a) for a in axes[-x.ndim:]], datasets=[dict(path='0')])], omero=dict(channels=[dict(label='DNA'), dict(label='actin')]))

def test_a_zarr_comes_out_as_one(in_process, blurred, tmp_path):
    small_zarr(tmp_path/'in.ome.zarr', np.stack([blurred]*2))
    for again in ('1 done', '1 skipped'): assert again in in_process('run', tmp_path/'in.ome.zarr', '--channel', 'dna', '--out', tmp_path/'out').text
    a,b = (read_image(o/'in.ome.zarr').pixels for o in (tmp_path, tmp_path/'out'))
    assert (a[0]!=b[0]).any() and (a[1]==b[1]).all()
    assert in_process('run', tmp_path/'in.ome.zarr', '--out', tmp_path/'in.ome.zarr'/'out').code==2

def torn_plate(path, blurred):
    "An OME-Zarr plate of two wells; a chunk of the last of its four fields is torn"
    root = pytest.importorskip('zarr').open_group(str(path), mode='w')
    wells = [dict(path=f'{r}/07', rowIndex=i, columnIndex=0) for i,r in enumerate('AB')]
    root.attrs['ome'] = dict(version='0.5', plate=dict(rows=[dict(name=r) for r in 'AB'], columns=[dict(name='07')], wells=wells))
    for r in 'AB':
        well = root.create_group(f'{r}/07')
        well.attrs['ome'] = dict(version='0.5', well=dict(images=[dict(path='0'), dict(path='1')]))
        for i in '01': small_zarr(path/r/'07'/i, blurred[:64,:64], 'yx')
    chunk = path/'B'/'07'/'1'/'0'/'c'/'1'/'1'
    chunk.write_bytes(chunk.read_bytes()[:50])

@pytest.fixture(scope='module')
def torn(tmp_path_factory, blurred, refocus):
    "A torn plate in the folder in, and its result in the folder out"
    tmp = tmp_path_factory.mktemp('torn')
    (tmp/'in').mkdir()
    torn_plate(tmp/'in'/'p.zarr', blurred)
    return tmp, refocus('run', tmp/'in'/'p.zarr', '--out', tmp/'out', '--model', 'nuclei-fast', '--json')

@pytest.mark.parametrize('args,table', [
    ('run in/p.zarr --out out --model nuclei-fast', None),
    ('score in/p.zarr --out score.csv --model nuclei-fast', 'score.csv'), ('trust in/p.zarr out/p.zarr --out trust.csv --model nuclei-fast', 'trust.csv'),
    ('evaluate out/p.zarr in/p.zarr --out report --no-nuclei --no-classical', 'report/scores.csv')])
def test_every_verb_names_a_torn_field_and_does_the_others(torn, refocus, args, table):
    tmp,said = torn
    files = json.loads(said.text)['files']
    assert (said.code, [o['status'] for o in files]) == (1, ['done']*3+['failed']) and 'p.zarr/B/07/1: cannot be read' in files[3]['note']
    said = refocus(*(tmp/a if '/' in a or '.csv' in a or a in ('out','report') else a for a in args.split()))
    assert said.code==1 and 'B/07/1' in said.text
    if table:
        rows = (tmp/table).read_text()
        assert all(f in rows for f in ('A/07/0','A/07/1','B/07/0')) and 'B/07/1' not in rows

def test_a_plate_is_written_where_nothing_can_be_renamed(refocus, blurred, tmp_path, monkeypatch):
    small_zarr(tmp_path/'a.zarr', blurred[:64,:64], 'yx')
    def refuse(*args, **kwargs): raise PermissionError(1, 'Operation not permitted')
    for name in ('replace','rename','link'): monkeypatch.setattr(os, name, refuse)
    for options in ((), ('--overwrite',)):
        said = refocus('run', tmp_path/'a.zarr', '--out', tmp_path/'out', *options)
        assert said.code==0 and '1 done' in said.text and said.text.count('renames no files')==1
        assert [p.name for p in (tmp_path/'out').iterdir()]==['a.zarr']
    assert read_image(tmp_path/'out'/'a.zarr').pixels.shape==(64,64)

STACKS = dict(
    plain=dict(metadata={'axes':'ZYX'}),
    imagej=dict(imagej=True, resolution=(1/.645, 1/.645), metadata={'axes':'ZCYX', 'unit':'um', 'spacing':2.}),
    ome=dict(ome=True, metadata={'axes':'TCYX', 'PhysicalSizeX':.645, 'PhysicalSizeXUnit':'µm', 'Channel':{'Name':['DNA','actin']}}),
    compressed=dict(compression='zlib', predictor=True, metadata={'axes':'YX'}))

@pytest.fixture(scope='module')
def stacks(tmp_path_factory, blurred, refocus):
    "Stacks of every kind of TIFF, and their results"
    tmp = tmp_path_factory.mktemp('stacks')
    (tmp/'in').mkdir()
    for kind,options in STACKS.items():
        sides = {'Z':3, 'C':2, 'T':2}
        shape = [sides[a] for a in options['metadata']['axes'][:-2]]
        tifffile.imwrite(tmp/'in'/f'{kind}.tif', np.broadcast_to(blurred, (*shape, *blurred.shape)), photometric='minisblack', **options)
    assert refocus('run', tmp/'in', '--out', tmp/'out').code==0
    return tmp

@pytest.mark.parametrize('kind', STACKS)
def test_axes_and_pixel_size_are_kept(stacks, kind):
    a,b = (read_image(stacks/o/f'{kind}.tif') for o in ('in', 'out'))
    assert (a.axes, a.pixels.shape, a.pixels.dtype, a.kind, a.compression) == (b.axes, b.pixels.shape, b.pixels.dtype, b.kind, b.compression)
    assert a.pixel_um==pytest.approx(b.pixel_um)

def test_an_imagej_hyperstack_stays_one(stacks):
    with tifffile.TiffFile(stacks/'out'/'imagej.tif') as tif:
        meta = tif.imagej_metadata
    assert (meta['hyperstack'], meta['slices'], meta['channels'], meta['unit'], meta['spacing'])==(True, 3, 2, 'um', 2.)

def tags(path):
    "Of all pages, but for places in the file and what the result says of itself"
    own = {'StripOffsets', 'StripByteCounts', 'ProcessingSoftware', 'ImageDescription', 'IJMetadata', 'IJMetadataByteCounts', 'ImageWidth', 'ImageLength'}
    with tifffile.TiffFile(path) as tif: return [{t.name: str(t.value) for t in p.aspage().tags if t.name not in own} for p in tif.pages]

@pytest.mark.parametrize('kind', STACKS)
def test_tags_are_kept(stacks, kind): assert tags(stacks/'in'/f'{kind}.tif')==tags(stacks/'out'/f'{kind}.tif')

def test_ome_metadata_are_kept(stacks):
    with tifffile.TiffFile(stacks/'in'/'ome.tif') as a, tifffile.TiffFile(stacks/'out'/'ome.tif') as b:
        before,after = (tifffile.xml2dict(t.ome_metadata)['OME'] for t in (a, b))
    assert 'not a measurement' in after['StructuredAnnotations']['CommentAnnotation']['Value']
    assert after['Image'].pop('AnnotationRef') and before['Image']==after['Image']

DEEP = dict(
    plain=dict(metadata={'axes':'ZYX'}),
    imagej=dict(imagej=True, metadata={'axes':'ZYX'}),
    truncated=dict(imagej=True, truncate=True, metadata={'axes':'ZYX'}),
    tiles=dict(ome=True, tile=(32,32), compression='zlib', metadata={'axes':'ZYX'}),
    zarr=None)

@pytest.mark.parametrize('kind', DEEP)
def test_doubts_of_every_plane_are_in_the_file(refocus, tmp_path, blurred, kind):
    from refocus_nbdev.io.provenance import read_provenance, texts_of
    name,deep = f'deep.{"zarr" if kind=="zarr" else "tif"}',np.stack([np.random.default_rng(0).normal(120, 5, blurred.shape).astype(np.uint16), blurred, blurred])
    if kind=='zarr': small_zarr(tmp_path/name, deep, 'zyx')
    else: tifffile.imwrite(tmp_path/name, deep, photometric='minisblack', **DEEP[kind])
    said = refocus('run', tmp_path/name, '--out', tmp_path/'out', '--pixel-um', 0.645, '--json')
    doubts = json.loads(said.text)['files'][0]['doubts']
    im = read_image(tmp_path/'out'/name)
    assert said.code==0 and doubts[0]=='nothing but noise is to be seen (1 of 3 planes)' and doubts==texts_of(read_provenance(im.software).doubts)
    assert (im.pixels[0]==deep[0]).all() and all((im.pixels[i]!=deep[i]).any() for i in (1,2))
    later = refocus('run', tmp_path/name, '--out', tmp_path/'out', '--pixel-um', 0.645, '--strict')
    assert later.code==1 and doubts[0] in later.text

@pytest.mark.parametrize('when', ['before its words are replaced', 'within that'])
def test_a_doubtful_file_is_there_with_its_doubts_or_not_at_all(refocus, tmp_path, blurred, monkeypatch, when):
    from refocus_nbdev.io import tiffcopy
    deep = np.stack([np.random.default_rng(0).normal(120, 5, blurred.shape).astype(np.uint16), blurred, blurred])
    tifffile.imwrite(tmp_path/'deep.tif', deep, photometric='minisblack')
    assert refocus('run', tmp_path/'deep.tif', '--out', tmp_path/'whole').code==0
    stopped = []
    def stop(*args):
        stopped.append(when)
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(*((tiffcopy, 'reword') if when!='within that' else (tifffile.TiffTag, 'overwrite')), stop)
        assert refocus('run', tmp_path/'deep.tif', '--out', tmp_path/'out').code==130 and contents(tmp_path/'out')=={} and stopped
    assert refocus('run', tmp_path/'deep.tif', '--out', tmp_path/'out').code==0
    assert contents(tmp_path/'out')==contents(tmp_path/'whole')

def test_only_the_channel_that_is_named(refocus, stacks, tmp_path):
    a = read_image(stacks/'in'/'ome.tif').pixels
    for given in ('actin', '2'):
        said = refocus('run', stacks/'in'/'ome.tif', '--channel', given, '--out', tmp_path/given)
        b = read_image(tmp_path/given/'ome.tif').pixels
        assert said.code==0 and (a[:,0]==b[:,0]).all() and (a[:,1]!=b[:,1]).any()
    for alike in ('ACTIN', '2', 'actin'): assert '1 skipped' in refocus('run', stacks/'in'/'ome.tif', '--channel', alike, '--out', tmp_path/'2').text
    said = refocus('run', stacks/'in'/'ome.tif', '--channel', 'DNA', '--out', tmp_path/'2')
    assert said.code==1 and 'other arguments' in said.text
    said = refocus('run', stacks/'in'/'ome.tif', '--channel', 'GFP', '--out', tmp_path/'none')
    assert said.code==1 and 'its channels are DNA (1), actin (2)' in said.text

def test_several_channels_and_one_model_are_mentioned(refocus, stacks, tmp_path):
    assert 'use the model general' in refocus('run', stacks/'in'/'ome.tif', '--model', 'nuclei-fast', '--out', tmp_path/'fast').text
    assert 'all channels' not in refocus('run', stacks/'in'/'ome.tif', '--out', tmp_path/'out').text

def test_axes_that_the_user_knows_better(refocus, stacks, tmp_path):
    assert 'CYX' in refocus('info', stacks/'in'/'plain.tif', '--axes', 'cyx').text
    said = refocus('run', stacks/'in'/'plain.tif', '--axes', 'CYX', '--channel', 3, '--out', tmp_path)
    a,b = (read_image(o/'plain.tif').pixels for o in (stacks/'in', tmp_path))
    assert said.code==0 and (a[:2]==b[:2]).all() and (a[2]!=b[2]).any()
    said = refocus('run', stacks/'in'/'plain.tif', '--axes', 'TCYX', '--out', tmp_path/'wrong')
    assert said.code==1 and 'do not fit' in said.text

def test_pixels_of_another_size(refocus, folder, tmp_path):
    said = refocus('run', folder, '--pixel-um', 0.43, '--out', tmp_path/'out')
    assert said.code==0 and 'rescaled from 0.43 to 0.645' in said.text
    assert 'pixels of 0.43 um' in refocus('info', tmp_path/'out').text
    assert refocus('run', folder, '--pixel-um', 6.5, '--out', tmp_path/'far').code==2 and not (tmp_path/'far').exists()
    tifffile.imwrite(folder/'field0.tif', tifffile.imread(folder/'field0.tif'), imagej=True, resolution=(2,2), metadata={'unit':'um'})
    assert 'rescaled from 0.5 to' in refocus('run', folder/'field0.tif', '--out', tmp_path/'own').text

def test_info(refocus, stacks, odd):
    said = refocus('info', stacks/'out'/'imagej.tif', stacks/'in'/'ome.tif')
    assert said.code==0
    for words in ('ImageJ TIFF', 'ZCYX, 3 x 2 x', '0.645 um', 'not a measurement', 'DNA, actin'): assert words in said.text
    assert refocus('info', odd[1]).code==1

def test_run_again(refocus, folder, tmp_path):
    out = tmp_path/'out'
    refocus('run', folder, '--out', out)
    first = contents(out)
    again = refocus('run', folder, '--out', out)
    assert again.code==0 and '2 skipped' in again.text and contents(out)==first

    (out/'field1.tif').unlink()
    remade = refocus('run', folder, '--out', out)
    assert '1 done, 1 skipped' in remade.text and contents(out)==first

    tifffile.imwrite(folder/'field0.tif', np.flipud(tifffile.imread(folder/'field0.tif')))
    changed = refocus('run', folder, '--out', out)
    assert changed.code==1 and 'field0.tif' in changed.text and contents(out)==first
    assert refocus('run', folder, '--out', out, '--overwrite').code==0
    assert contents(out)['field0.tif']!=first['field0.tif']

def test_a_file_does_not_depend_on_its_neighbours(refocus, folder, tmp_path):
    refocus('run', folder, '--out', tmp_path/'together')
    refocus('run', folder/'field1.tif', '--out', tmp_path/'alone')
    assert contents(tmp_path/'together')['field1.tif']==contents(tmp_path/'alone')['field1.tif']

KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import refocus_nbdev.refocus.files
from refocus_nbdev.cli.run import run
src,out,whole = map(Path, sys.argv[1:])
rng,kept = random.Random(0),set()
def places(): return [n for n in os.listdir(out) if not n.startswith('.')] if out.exists() else []
def results(): return {p.relative_to(out) for p in out.rglob('*') if p.is_file() and not any(n.startswith('.') for n in p.relative_to(out).parts[:1])}
for i in range(20):
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        run([str(src)], out)
        os._exit(0)
    wanted,start = min(len({p.parts[0] for p in kept})+rng.randint(0, 2), len(os.listdir(src))),time.monotonic()
    while len(places())<wanted and time.monotonic()-start<10: time.sleep(0.01)
    time.sleep(rng.uniform(0.1, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = results()
    assert kept <= done and all((out/p).read_bytes()==(whole/p).read_bytes() for p in done)
    kept = done
    print(len({p.parts[0] for p in kept}))
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_twenty_times(refocus, tmp_path, blurred):
    src,out = tmp_path/'in', tmp_path/'out'
    src.mkdir()
    large = np.tile(blurred, (4,3))
    for i in range(38): tifffile.imwrite(src/f'{i:02d}.tif', np.roll(large, i), photometric='minisblack')
    tifffile.imwrite(src/'tiles.tif', large, photometric='minisblack', tile=(64,64), compression='zlib')
    small_zarr(src/'a.zarr', large)
    assert refocus('run', src, '--out', tmp_path/'whole').code==0
    killed = subprocess.run([sys.executable, '-c', KILLER, src, out, tmp_path/'whole'], capture_output=True, text=True, env=ENV, timeout=300)
    assert killed.returncode==0, killed.stderr
    after = [int(n) for n in killed.stdout.split() if n.isdigit()]
    assert len(after)==20 and after[-1]>after[0]
    said = refocus('run', src, '--out', out)
    assert said.code==0 and f'{40-after[-1]} done, {after[-1]} skipped' in said.text
    assert contents(out)==contents(tmp_path/'whole') and not list(out.glob('.*'))

def test_only_large_files_have_the_memory_to_themselves(folder, tmp_path, monkeypatch):
    from refocus_nbdev.refocus import jobs as batches
    small_zarr(folder/'a.zarr', np.zeros((40,40), np.uint16))
    shutil.copy(folder/'field0.tif', folder/'field2.tif')
    least = 1+(folder/'field0.tif').stat().st_size
    monkeypatch.setattr(batches, 'is_large', partial(batches.is_large, least=least))
    tifffile.imwrite(folder/'large.tif', np.zeros((200,200), np.uint16))
    running,most = [],{}
    def run_job(job, *args, **kwargs):
        running.append(job)
        time.sleep(0.05)
        most[job.source.name] = len(running)
        running.remove(job)
    monkeypatch.setattr(batches, 'run_job', run_job)
    batches.run_jobs(plan_run([folder, folder/'gone.tif'], tmp_path/'out'), SimpleNamespace(at_once=(3,1)))
    assert most.pop('large.tif')==1 and len(most)==5 and max(most.values())==3

def test_batches_of_files_equal_one_by_one(tmp_path, blurred):
    from refocus_nbdev.refocus.engine import Batcher, Refocuser
    from refocus_nbdev.refocus.jobs import run_jobs
    (tmp_path/'in').mkdir()
    for i in range(4): tifffile.imwrite(tmp_path/'in'/f'{i}.tif', np.roll(blurred, 20*i, 1)+i)
    joining,sizes = Refocuser.load('nuclei-fast', 'cpu'),[]
    def slowly(f, x, *args):
        sizes.append(len(x))
        time.sleep(0.03)
        return joining.computed(f, x, *args)
    for out,at_once,most in (('alone', 1, 0), ('together', 4, 1e6)):
        joining.at_once,joining.queue = (at_once, 1),Batcher(slowly, lambda: most)
        run_jobs(jobs := plan_run([tmp_path/'in'], tmp_path/out), joining)
        assert {j.status for j in jobs}=={'done'}
        assert (max(sizes)>1)==(out=='together')
    for f in (tmp_path/'alone').iterdir():
        one,other = (read_image(tmp_path/o/f.name) for o in ('alone', 'together'))
        assert np.abs(one.pixels.astype(int)-other.pixels).max()<=0.01*np.ptp(one.pixels) and one.software==other.software

@pytest.mark.skipif(os.name=='nt', reason='Ctrl-C is another thing there')
def test_interrupted(start, tmp_path, blurred):
    src,out = tmp_path/'in', tmp_path/'out'
    src.mkdir()
    for i in range(60): tifffile.imwrite(src/f'{i:02d}.tif', np.roll(np.tile(blurred, (4,3)), i), photometric='minisblack')
    running = start('run', src, '--out', out)
    while running.poll() is None and not list(out.glob('[!.]*')): time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said,_ = running.communicate(timeout=10)
    kept = contents(out)
    assert running.returncode==130 and 'interrupted' in said and 'Traceback' not in said
    assert 0<len(kept)<60 and not [n for n in kept if n.startswith('.')]

@pytest.mark.parametrize('when', ['early', 'late'])
def test_an_input_that_vanishes_during_the_run(refocus, folder, tmp_path, monkeypatch, when):
    from refocus_nbdev.refocus import files, jobs as batches
    home,name = (batches, 'run_job') if when=='early' else (files, 'provenance_of')
    whole = getattr(home, name)
    def vanishing(*args, **kwargs):
        (folder/'field1.tif').unlink(missing_ok=True)
        return whole(*args, **kwargs)
    monkeypatch.setattr(home, name, vanishing)
    said = refocus('run', folder, '--out', tmp_path/'out')
    assert said.code==1 and '1 done' in said.text and len([l for l in said.text.splitlines() if 'field1.tif' in l])==1
    assert contents(tmp_path/'out').keys()=={'field0.tif'}

def test_no_room_for_a_result(folder, tmp_path):
    resource = pytest.importorskip('resource')
    def small_files(): resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    done = subprocess.run(command('run', folder, '--out', tmp_path/'out'), capture_output=True, text=True, env=ENV, cwd=tmp_path, preexec_fn=small_files)
    assert done.returncode==1 and done.stdout.count('cannot be written')==2 and 'Traceback' not in done.stderr and contents(tmp_path/'out')=={}

@pytest.mark.skipif(not shutil.which('unshare'), reason='needs a small disk')
def test_a_disk_that_is_full(folder, tmp_path):
    def on_small_disk(*args): return subprocess.run(['unshare', '-rm', 'sh', '-c', 'mount -t tmpfs -o size=40k none disk && "$@"; code=$?; ls -A disk disk/out; exit $code', 'sh', *map(str, args)], capture_output=True, text=True, env=ENV, cwd=tmp_path)
    (tmp_path/'disk').mkdir()
    if 'disk/out' not in on_small_disk('mkdir', 'disk/out').stdout: pytest.skip('may not make a small disk')
    done = on_small_disk(*command('run', folder, '--out', 'disk/out'))
    assert done.returncode==1 and '1 done, 0 skipped, 1 failed' in done.stdout and 'the disk is full' in done.stdout and 'Traceback' not in done.stderr
    assert len(done.stdout.split('disk/out:')[-1].split())==1

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may write anywhere')
def test_read_only_results(refocus, folder, tmp_path):
    (tmp_path/'out').mkdir(mode=0o555)
    said = refocus('run', folder, '--out', tmp_path/'out')
    assert said.code==1 and 'cannot be written' in said.text

def test_told_the_distance(refocus, folder, tmp_path):
    names = sorted(f.name for f in folder.glob('*.tif'))
    (tmp_path/'um.csv').write_text('file,defocus_um\n'+''.join(f'{n},-30\n' for n in names[1:]))
    said = refocus('run', folder, '--out', tmp_path/'csv', '--defocus-um', tmp_path/'um.csv')
    assert said.code==1 and f'{names[0]}: ' in said.text and 'no row' in said.text and not (tmp_path/'csv'/names[0]).exists()
    assert refocus('run', folder, '--out', tmp_path/'number', '--defocus-um', 30).code==0
    assert refocus('run', folder, '--out', tmp_path/'alone').code==0
    for n in names[1:]: assert (tmp_path/'csv'/n).read_bytes()==(tmp_path/'number'/n).read_bytes() != (tmp_path/'alone'/n).read_bytes()
    assert 'told 30 um' in read_image(tmp_path/'number'/names[0]).software
    assert 'other arguments' in refocus('run', folder, '--out', tmp_path/'alone', '--defocus-um', 30).text

def test_files_of_one_name_are_told_apart_by_their_folders(refocus, folder, tmp_path):
    for n in ('z1','z2'): shutil.copytree(folder, folder/n, ignore=shutil.ignore_patterns('z1'))
    (tmp_path/'um.csv').write_text('file;defocus_um\nz1/field0.tif;5\nz2/field0.tif;25\nfield1.tif;9\n')
    said = refocus('run', folder/'z*'/'**'/'*.tif', '--defocus-um', tmp_path/'um.csv', '--out', tmp_path/'out', '--json')
    got = {os.path.relpath(f['source'], folder): (f['status'], f['defocus_um']) for f in json.loads(said.text)['files']}
    assert said.code==1 and got=={'z1/field0.tif':('done', 5), 'z2/field0.tif':('done', 25), 'z1/field1.tif':('failed', None), 'z2/field1.tif':('failed', None)}
    assert 'write the folder before the name, as in z1/field1.tif' in said.text

@pytest.mark.parametrize('header,row', [('\ufefffile,defocus_um','{},30'), ('\ufefffile;defocus_um','{};30,0'), ('well\tfile\tdefocus_um','a01\t{}\t-30'), ('sep=;\nfile;defocus_um','{};30')], ids=('utf-8','semicolons','tabs','sep'))
def test_distances_as_spreadsheets_write_them(refocus, folder, tmp_path, header, row):
    names = sorted(f.name for f in folder.glob('*.tif'))
    (tmp_path/'um.csv').write_text('\n'.join([header, *map(row.format, names)]), encoding='utf-8')
    assert refocus('run', folder, '--out', tmp_path/'out', '--defocus-um', tmp_path/'um.csv').code==0
    assert 'told 30 um' in read_image(tmp_path/'out'/names[0]).software

@pytest.mark.parametrize('text,said', [('file,um\na.tif,3','has the columns file, um'), ('file,defocus_um\n','holds no row'), ('','holds no row'), ('file,defocus_um\na.tif,far','a.tif'), ('file,defocus_um\na.tif','a.tif')])
def test_distances_that_cannot_be_meant(refocus, folder, tmp_path, text, said):
    (tmp_path/'um.csv').write_text(text)
    got = refocus('run', folder, '--out', tmp_path/'out', '--defocus-um', tmp_path/'um.csv')
    assert got.code==2 and said in got.text and 'um.csv' in got.text and not (tmp_path/'out').exists()

def test_each_shipped_model_says_what_it_is_for():
    for n in shipped_models():
        card = read_card(model_path(n))
        stain = {'general':'any stain'}.get(n, n.split('-')[0])
        assert card['name']==n and stain in card['modality']

def test_farther_than_trained_for(refocus, folder, tmp_path):
    most = read_card(model_path('nuclei'))['blur']['max_um']
    said = refocus('run', folder, '--out', tmp_path/'out', '--defocus-um', most+20)
    assert said.code==0 and 'WARNING' in said.text and f'{most:g} um' in said.text
    assert f'{most:g} um' not in refocus('run', folder, '--out', tmp_path/'near', '--defocus-um', most).text

def test_results_cannot_go_into_a_file(refocus, folder, tmp_path):
    (tmp_path/'out').write_text('')
    said = refocus('run', folder, '--out', tmp_path/'out')
    assert said.code==2 and 'out is a file' in said.text and (tmp_path/'out').read_text()==''

def test_a_model_that_is_none(refocus, folder, tmp_path):
    whole = model_path('nuclei').read_bytes()
    wrong = dict(text=b'not a model', cut=whole[:len(whole)//2], empty=b'')
    for name,content in wrong.items():
        (tmp_path/f'{name}.safetensors').write_bytes(content)
        said = refocus('run', folder, '--model', tmp_path/f'{name}.safetensors', '--out', tmp_path/'out')
        assert said.code==2 and f'{name}.safetensors' in said.text
    said = refocus('run', folder, '--model', 'unicorns', '--out', tmp_path/'out')
    assert said.code==2 and 'unicorns' in said.text and 'nuclei' in said.text
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('args', [('run',), ('run','x','--nonsense'), ('run','x','--device','abacus'), ('run','x','--device','cuda:one'), ('run','x','--device','cuda:99'), ('run','x','--defocus-um','far'), ('run','x','--defocus-um','none.csv'), ('fly',)], ids=' '.join)
def test_wrong_arguments(refocus, args): assert refocus(*args).code==2

def test_a_graphics_card_has_a_number(refocus, folder, tmp_path, monkeypatch):
    room = sys.modules['refocus_nbdev.cli.run']
    wanted = []
    def load(model, device, *args):
        wanted.append(device)
        raise UsageError('no model')
    with monkeypatch.context() as m:
        m.setattr(room, 'load_refocuser', load)
        for device in ('auto', 'cpu', 'cuda', 'cuda:1', 'mps'): assert refocus('run', folder, '--device', device).code==2
    assert wanted==['auto', 'cpu', 'cuda', 'cuda:1', 'mps']
    said = refocus('run', folder, '--device', 'cuda:99', '--out', tmp_path/'out')
    assert said.code==2 and '--device cuda:99' in said.text and 'CUDA graphics card' in said.text and not (tmp_path/'out').exists()
    assert 'auto|cpu|cuda|mps' in refocus('run', '--help').text

def test_help_has_an_example(refocus):
    verbs = [c.name for c in app.registered_commands]
    assert len(verbs)==12
    for verb in verbs:
        said = refocus(verb, '--help')
        assert said.code==0 and f'refocus {verb}' in said.text.split('Example')[1]

@pytest.mark.parametrize('args', [('--help',), ('run','FOLDER','--dry-run'), ('info','FOLDER'), ('run','FOLDER','--defocus-um','far')], ids=' '.join)
def test_what_computes_nothing_does_not_wait_for_torch(folder, tmp_path, args):
    code = 'import sys, atexit; atexit.register(lambda: print({"torch","fastai","scipy","matplotlib","distributed","asyncio"} & set(sys.modules))); from refocus_nbdev.cli.__main__ import main; main()'
    done = subprocess.run([sys.executable, '-c', code, *[folder if a=='FOLDER' else a for a in args]], capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.returncode in (0,2) and done.stdout.splitlines()[-1]=='set()'

def test_refocusing_imports_neither_fastai_nor_torchvision(folder, tmp_path):
    code = 'import sys; from refocus_nbdev.cli.run import run; from pathlib import Path; run(sys.argv[1:2], Path(sys.argv[2])); print({m.split(".")[0] for m in sys.modules} & {"fastai","torchvision"})'
    done = subprocess.run([sys.executable, '-c', code, folder, tmp_path/'out'], capture_output=True, text=True, env=ENV)
    assert done.stdout.splitlines()[-1]=='set()' and len(contents(tmp_path/'out'))==2

def test_what_is_said_of_noise_of_sizes_and_of_tables(refocus, tmp_path):
    (tmp_path/'in').mkdir()
    noise = np.random.default_rng(0).normal(300, 9, (64,64)).astype(np.uint16)
    tifffile.imwrite(tmp_path/'in'/'noise.tif', noise, resolution=(1e4/.645,)*2, resolutionunit='CENTIMETER')
    said = refocus('run', tmp_path/'in', '--out', tmp_path/'out', '--pixel-um', '0.5')
    assert 'taken to be' not in said.text.replace('were taken to be 0.5', '') and 'its pixels are 0.645 um by its metadata' in said.text
    assert json.loads(refocus('run', tmp_path/'in', '--out', tmp_path/'json', '--json').text)['files'][0]['found_um']==[None]
    (tmp_path/'mine.csv').write_text('file,defocus_um\nnoise.tif,3\n')
    assert 'not a table that refocus has written' in refocus('info', tmp_path/'mine.csv').text

def test_what_is_said_of_many_files_is_said_once(refocus, tmp_path):
    (tmp_path/'in').mkdir()
    for i in range(7): tifffile.imwrite(tmp_path/'in'/f'{i}.tif', np.full((8,8), i, np.uint16))
    said = refocus('run', tmp_path/'in', '--out', tmp_path/'out').text
    assert said.count('constant image')==1 and '0.tif and 6 more: constant image, passed through' in said

@pytest.fixture
def pngs(tmp_path, blurred):
    "Two images as PNG"
    (tmp_path/'png').mkdir()
    for name in 'ab': Image.fromarray(blurred).save(tmp_path/'png'/f'{name}.png')
    return tmp_path/'png'

@pytest.mark.parametrize('args,said', [
    ('score png --pictures png', 'png holds the images'), ('score png/a.png --pictures png/../png', 'holds the images'),
    ('score png --pictures png/a.png', 'is a file'), ('trust png png --pictures png', 'holds the images'),
    ('score png --out png/a.png --overwrite', 'is one of the files that are read'), ('score list.csv --out list.csv --overwrite', 'list.csv: is one of the files that are read'),
    ('score png --defocus-um um.csv --out um.csv --overwrite', 'um.csv: is one of the files that are read'), ('score png --tiles png/b.png --overwrite', 'png/b.png: is one of'),
    ('score png/a.png --out png/b.png --overwrite', 'no table that refocus has written'), ('score png --out um.csv --overwrite', 'no table that refocus has written'),
    ('score png --out both.csv --tiles both.csv', 'both.csv: cannot hold two tables'), ('trust png png --out same.csv --suspects same.csv', 'cannot hold two tables'),
    ('score png --out known.csv', 'use --overwrite'), ('check plate --out reports', 'focus.csv: exists, and is no table'), ('check plate --out reports --overwrite', 'focus.csv: exists, and is no table'),
    ('check plate --out um.csv', 'um.csv is a file'), ('train --sharp-only png --log png/a.png', 'a.png: exists, and is no table')])
def test_nothing_of_the_users_is_replaced(refocus, pngs, tmp_path, monkeypatch, args, said):
    (tmp_path/'reports').mkdir()
    for name,text in (('list.csv', 'file\npng/a.png\n'), ('um.csv', 'file,defocus_um\na.png,5\nb.png,5\n'), ('known.csv', ''), ('reports/focus.csv', 'mine')): (tmp_path/name).write_text(text)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    got = refocus(*args.split())
    assert (got.code, contents(tmp_path))==(2, before) and said in got.text.replace(os.sep, '/'), got.text

def test_tables_of_ours_and_empty_ones_are_replaced_where_that_is_asked_for(refocus, pngs, tmp_path):
    table,tiles = tmp_path/'scores.csv', tmp_path/'tiles.csv'
    args = 'score', pngs/'a.png', '--out', table, '--tiles', tiles, '--pictures', tmp_path/'maps', '--overwrite'
    tiles.write_text('')
    for _ in range(2): assert refocus(*args).code==0
    assert refocus('info', table, tiles).code==0 and contents(tmp_path/'maps').keys()=={'a.png'}
    shutil.copy(pngs/'a.png', tmp_path/'maps')
    said = refocus(*args)
    assert said.code==1 and 'a.png: exists, and is no figure' in said.text and (tmp_path/'maps'/'a.png').read_bytes()==(pngs/'a.png').read_bytes()

def test_reports_of_a_check_are_replaced_where_that_is_asked_for(refocus, tmp_path):
    args = 'check', SAMPLE, '--planes', 10, '--out', tmp_path
    assert [refocus(*o).code for o in (args, args, (*args, '--overwrite'))]==[0,2,0]

def test_nothing_to_say_anything_of(refocus, tmp_path):
    (tmp_path/'none').mkdir()
    for verb in ('info', 'score', 'run', 'train'):
        more = dict(info=[], train=['--sharp-only']).get(verb, ['--out', tmp_path/'out'])
        said = refocus(verb, tmp_path/'none', *more)
        assert said.code==2 and 'none: no images here (TIFF' in said.text
    assert not (tmp_path/'out').exists()

def test_a_wrong_folder_is_told_before_a_table_that_exists(refocus, folder, tmp_path):
    (tmp_path/'scores.csv').touch()
    for verb in ('score', 'trust', 'calibrate'):
        said = refocus(verb, tmp_path/'plat', *[folder]*(verb!='score'), '--out', tmp_path/'scores.csv')
        assert said.code and 'plat: ' in said.text and 'exists already' not in said.text

def test_numbers_with_a_comma_and_sizes_in_nanometres(refocus, folder, tmp_path):
    said = refocus('run', folder, '--pixel-um', '0,645', '--out', tmp_path/'out')
    assert said.code==2 and "'0,645' is not a number; the decimal sign is" in said.text
    said = refocus('run', folder, '--pixel-um', 645, '--out', tmp_path/'out')
    assert said.code==2 and 'no more than 4 times; pixel sizes are in um' in said.text

def test_a_channel_that_is_not_there(refocus, folder, tmp_path):
    said = refocus('run', folder, '--channel', 'DAPI', '--out', tmp_path/'out')
    assert said.code==1 and 'has no channel DAPI; its only channel is 1' in said.text

def test_info_on_a_file_that_is_no_image(refocus, tmp_path):
    (tmp_path/'my.checkpoint').write_text('hours of work')
    said = refocus('info', tmp_path/'my.checkpoint')
    assert said.code==1 and 'info reads images' in said.text and 'save the image' not in said.text

def test_a_fault_of_the_program_does_not_end_a_run_of_many(refocus, folder, tmp_path, monkeypatch):
    from refocus_nbdev.judge import defocus as scores
    whole = scores.score_file
    def failing(refocuser, f, **kwargs): return whole(refocuser, f, **kwargs) if f.name!='field0.tif' else 1/0
    monkeypatch.setattr(scores, 'score_file', failing)
    said = refocus('score', folder, '--out', tmp_path/'scores.csv')
    assert said.code==1 and 'field0.tif: ZeroDivisionError' in said.text and 'field1.tif' in (tmp_path/'scores.csv').read_text()

def test_what_reads_the_output_may_stop(folder, tmp_path):
    line = ' '.join(map(str, command('run', folder, '--out', 'out')))+' | head -1'
    said = subprocess.run(line, shell=True, capture_output=True, text=True, env=ENV|{'PYTHONUNBUFFERED':'1'}, cwd=tmp_path)
    assert len(said.stdout.splitlines())==1 and not said.stderr and len(contents(tmp_path/'out'))==2

@pytest.mark.parametrize('args', [('score','IN','--dry-run'), ('info','IN')], ids=' '.join)
def test_nobody_reads_the_output(folder, tmp_path, args):
    r,w = os.pipe()
    os.close(r)
    done = subprocess.run(command(*(folder if a=='IN' else a for a in args)), stdout=w, stderr=subprocess.PIPE, text=True, env=ENV, cwd=tmp_path)
    os.close(w)
    assert (done.returncode, done.stderr)==(141, '')

def test_a_run_that_makes_nothing_leaves_nothing(refocus, tmp_path):
    (tmp_path/'text.tif').write_text('not an image')
    said = refocus('run', tmp_path/'text.tif', '--out', tmp_path/'new'/'out', '--uncertainty')
    assert said.code==1 and contents(tmp_path).keys()=={'text.tif'} and not (tmp_path/'new').exists()
    (tmp_path/'out').mkdir()
    assert refocus('run', tmp_path/'text.tif', '--out', tmp_path/'out').code==1 and (tmp_path/'out').is_dir()

def test_rescaled_is_no_doubt_when_scoring(refocus, folder, tmp_path):
    whole = tifffile.imread(sorted(SAMPLE.glob('BBBC006_v1_images_z_10/*.tif'))[0])
    for path in folder.iterdir(): tifffile.imwrite(path, whole)
    said = refocus('score', folder, '--pixel-um', 0.43, '--out', tmp_path/'scores.csv')
    note = (tmp_path/'scores.csv').read_text()
    assert said.code==0 and 'rescaled from 0.43 to 0.645 um a pixel' in note and 'and back' not in note and 'doubtful' not in said.text

def test_a_model_that_is_worse_than_nothing_is_warned_of(refocus, folder, tmp_path):
    from refocus_nbdev.learn.modelfile import read_model, write_model
    model,card = read_model(model_path('nuclei-fast'))
    write_model(tmp_path/'worse.safetensors', model, card | dict(validation=dict(psnr=20., psnr_input=21.)))
    said = refocus('run', folder/'field0.tif', '--model', tmp_path/'worse.safetensors', '--out', tmp_path/'out')
    assert said.code==0 and 'was worse than doing nothing' in said.text
    assert 'than doing nothing' not in refocus('run', folder/'field1.tif', '--model', 'nuclei-fast', '--out', tmp_path/'out').text

def test_tables_of_constant_images_are_known(refocus, tmp_path):
    for d in ('in','out'):
        (tmp_path/d).mkdir()
        tifffile.imwrite(tmp_path/d/'flat.tif', np.full((3,64,64), 7, np.uint16), photometric='minisblack', metadata={'axes':'ZYX'})
    named = {n: tmp_path/f'{n}.csv' for n in ('scores','tiles','trust','suspects')}
    assert refocus('score', tmp_path/'in', '--out', named['scores'], '--tiles', named['tiles']).code==0
    said = refocus('trust', tmp_path/'in', tmp_path/'out', '--out', named['trust'], '--suspects', named['suspects'])
    assert said.code==0 and 'nan' not in said.text and '0 planes checked in 1 file;' in said.text
    said = refocus('info', *named.values())
    assert said.code==0 and all(f'{kind}, of refocus' in said.text for kind in ('planes','tiles','suspects')), said.text

def test_clipping_is_a_doubt(refocus, blurred, tmp_path):
    wide = ((blurred-blurred.min())*(250/np.ptp(blurred))).astype(np.uint8)
    tifffile.imwrite(tmp_path/'a.tif', wide, resolution=(1e4/.645,)*2, resolutionunit='CENTIMETER')
    said = refocus('run', tmp_path/'a.tif', '--out', tmp_path/'out', '--json')
    doubts = [d for d in json.loads(said.text)['files'][0]['doubts'] if 'brighter than uint8 can hold, and were clipped' in d]
    assert said.code==0 and len(doubts)==1 and doubts[0] in read_image(tmp_path/'out'/'a.tif').software
    said = refocus('run', tmp_path/'a.tif', '--out', tmp_path/'strict', '--strict')
    assert said.code==1 and 'refused, as --strict asks for' in said.text and not (tmp_path/'strict').exists()

def test_eight_bits_become_sixteen_where_that_is_asked_for(refocus, blurred, tmp_path):
    wide = (9+(blurred-blurred.min())*(241/np.ptp(blurred))).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path/'a.png')
    tifffile.imwrite(tmp_path/'floats.tif', wide.astype(np.float32))
    args = 'run', tmp_path/'a.png', '--pixel-um', 0.645, '--out', tmp_path/'out', '--model', 'nuclei-fast'
    assert 'uint8; written as 16 bits, counts times 64' in refocus(*args, '--dtype', 'uint16', '--dry-run').text
    said = refocus(*args, '--dtype', 'uint16', '--strict', '--json')
    assert said.code==0 and json.loads(said.text)['files'][0]['factor']==64, said.text
    result = read_image(tmp_path/'out'/'a.png').pixels
    assert result.dtype==np.uint16 and 255*64<result.max()<65535 and abs(result.mean()/64/wide.mean()-1)<0.1
    assert '1 skipped' in refocus(*args, '--dtype', 'uint16').text
    assert 'it has: 16 bits: counts times 64; asked for: nothing more' in refocus(*args).text
    assert 'uint16' in (text := refocus('info', tmp_path/'out'/'a.png').text) and '16 bits: counts times 64' in text
    said = refocus('run', tmp_path/'floats.tif', '--out', tmp_path/'out', '--dtype', 'uint16')
    assert said.code==1 and 'its pixels are float32, and --dtype uint16 is for 8 bits' in said.text

def test_clipping_at_0_is_a_doubt(refocus, blurred, tmp_path):
    from refocus_nbdev.refocus.engine import Refocuser
    subtracted = np.clip(blurred.astype(int)-int(np.median(blurred)), 0, None).astype(np.uint16)
    shifted = (blurred-blurred.min()+50).astype(np.uint16)
    floats = subtracted.astype(np.float32)
    for name,x in dict(subtracted=subtracted, shifted=shifted, floats=floats).items():
        tifffile.imwrite(tmp_path/f'{name}.tif', x, resolution=(1e4/.645,)*2, resolutionunit='CENTIMETER')
    said = refocus('run', *(tmp_path/f'{n}.tif' for n in ('subtracted','shifted','floats')), '--out', tmp_path/'out', '--json', '--model', 'nuclei')
    doubts = [f['doubts'] for f in json.loads(said.text)['files']]
    clipped = [[d for d in of_file if 'clipped at 0: add an offset' in d] for of_file in doubts]
    assert said.code==0 and [len(d) for d in clipped]==[1,0,0], doubts
    result = read_image(tmp_path/'out'/'subtracted.tif')
    assert clipped[0][0] in result.software
    np.testing.assert_array_equal(result.pixels, Refocuser.load('nuclei').refocus(subtracted))
    said = refocus('run', tmp_path/'subtracted.tif', '--out', tmp_path/'strict', '--strict', '--model', 'nuclei')
    assert said.code==1 and 'refused, as --strict asks for' in said.text and not (tmp_path/'strict').exists()

def hot_pixels(x):
    "Places of a hot cluster, a streak of a cosmic ray and a dead pixel"
    truth = np.zeros(x.shape, bool)
    truth[60:62, 70:72] = truth[90, 40:46] = True
    return truth

def test_hot_pixels_are_replaced_and_said(refocus, blurred, tmp_path):
    truth = hot_pixels(blurred)
    tifffile.imwrite(tmp_path/'good.tif', blurred)
    tifffile.imwrite(tmp_path/'hot.tif', np.where(truth, 65535, blurred).astype(blurred.dtype))
    said = refocus('run', tmp_path/'good.tif', tmp_path/'hot.tif', '--out', tmp_path/'out', '--json')
    notes = [f['note'] for f in json.loads(said.text)['files']]
    assert 'sharper than any light' not in notes[0] and f'{truth.sum()} pixels are sharper than any light' in notes[1]
    good,hot = (read_image(tmp_path/'out'/f'{n}.tif').pixels.astype(float) for n in ('good', 'hot'))
    assert np.abs(hot-good)[~truth].mean()<0.01*good.std() and hot.max()<1.1*good.max()
    refocus('run', tmp_path/'hot.tif', '--out', tmp_path/'kept', '--hot-pixels', 'keep')
    assert (read_image(tmp_path/'kept'/'hot.tif').pixels[truth]==65535).all()

@pytest.mark.parametrize('value', [0, 255])
def test_an_area_without_data_stays_and_changes_nothing_else(refocus, blurred, tmp_path, value):
    strip = blurred.copy()
    strip[:, :24] = value
    tifffile.imwrite(tmp_path/'good.tif', blurred)
    tifffile.imwrite(tmp_path/'strip.tif', strip)
    said = refocus('run', tmp_path/'good.tif', tmp_path/'strip.tif', '--out', tmp_path/'out')
    assert 'of the plane holds no data' in said.text
    good,new = (read_image(tmp_path/'out'/f'{n}.tif').pixels.astype(float) for n in ('good', 'strip'))
    assert (new[:, :24]==value).all()
    assert np.abs(new-good)[:, 90:].mean()<0.2*good.std()

def test_files_that_refocus_did_not_make_are_never_replaced(refocus, folder, tmp_path, blurred):
    out = tmp_path/'out'
    out.mkdir()
    tifffile.imwrite(out/'field0.tif', blurred)
    before = contents(out)
    for how in ([], ['--overwrite'], ['--overwrite', '--dry-run']):
        said = refocus('run', folder, '--out', out, *how)
        assert said.code==1 and said.text.count('field0.tif: exists, and is no result of refocus')==1
        assert contents(out)['field0.tif']==before['field0.tif']
    again = refocus('run', folder/'field1.tif', '--out', out, '--overwrite', '--dry-run')
    assert again.code==0 and 'replaces the earlier result' in again.text
