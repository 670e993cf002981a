"Files on servers: a server for S3 (moto) and a web server, both in this process; without network"
import http.server, io, json, shutil, socket, threading
from functools import partial
from pathlib import Path
import pandas as pd, pytest, tifffile
from conftest import contents
from refocus_nbdev.io import remote
from refocus_nbdev.io.disk import file_hash
from refocus_nbdev.io.tables import Url

pytest.importorskip('aiohttp', reason="needs pip install 'refocus_nbdev[cloud]'")
zarr = pytest.importorskip('zarr')

@pytest.fixture(autouse=True)
def quick(monkeypatch): monkeypatch.setattr(remote, '_PAUSES_S', [0.01]*4)

@pytest.fixture
def temporary(tmp_path, monkeypatch):
    "The folder for temporary files"
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path/'temporary'))
    (tmp_path/'temporary').mkdir()
    return tmp_path/'temporary'

@pytest.fixture
def refocus(in_process): return lambda verb, *args: in_process(verb, *args, *['--model', 'nuclei-fast']*(verb in ('run', 'score')))

def write_field(folder, pixels, zarr_format, **options):
    "An OME-Zarr image of two planes, whose first plane is empty"
    group = zarr.open_group(str(folder), mode='w', zarr_format=zarr_format)
    about = dict(multiscales=[dict(axes=[dict(name=a) for a in 'cyx'], datasets=[dict(path='0')])])
    group.attrs.update(dict(ome=about) if zarr_format==3 else about)
    group.create_array('0', shape=(2, *pixels.shape), dtype=pixels.dtype, **dict(dict(chunks=(1,64,64)), **options))[1] = pixels

KINDS = {'2': dict(zarr_format=2), '3': dict(zarr_format=3), 'sharded': dict(zarr_format=3, chunks=(1,32,32), shards=(1,64,64))}

class Handler(http.server.SimpleHTTPRequestHandler):
    "Answers from a folder; `odd` has other answers, by the end of a path: status codes, or `cut`"
    protocol_version = 'HTTP/1.1'
    odd,asked = {},[]
    def log_message(self, *args): pass
    def do_GET(self):
        self.asked.append(self.path)
        ending = next((e for e in self.odd if self.path.endswith(e)), None)
        answer = self.odd[ending].pop(0) if ending and self.odd[ending] else None
        if answer is None: return super().do_GET()
        if isinstance(answer, int): return self.send_error(answer)
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:len(data)//2])
        self.close_connection = True
    def list_directory(self, path): self.send_error(404)

@pytest.fixture
def web(tmp_path):
    "A web server that lists no folders, and its folder"
    (tmp_path/'web').mkdir()
    Handler.odd,Handler.asked = {},[]
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path/'web')))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
    yield Url(f'http://127.0.0.1:{server.server_port}'), tmp_path/'web'
    server.shutdown()
    server.server_close()

@pytest.mark.parametrize('kind', KINDS)
def test_a_field_comes_from_a_web_server_as_it_lies_there(web, blurred, kind, tmp_path):
    root,folder = web
    write_field(folder/'a.zarr', blurred, **KINDS[kind])
    with remote.fetched(root/'a.zarr') as copy: assert contents(copy)==contents(folder/'a.zarr')
    chunk = next(name for name in contents(folder/'a.zarr'/'0') if 'zarr.json' not in name and name[0]!='.')
    Handler.odd = {f'0/{chunk}': [503, 'cut', 429]}
    with remote.fetched(root/'a.zarr') as copy: assert contents(copy)==contents(folder/'a.zarr')
    for answer,words in ((403, 'refuses access'), (500, 'answers 500'), ('cut', 'no answer')):
        Handler.odd = {f'0/{chunk}': [answer]*9}
        with pytest.raises(remote.RemoteError, match=words): remote.fetch(root/'a.zarr', tmp_path/str(answer))
    Handler.odd = {f'0/{name}': [404]*9 for name in ('zarr.json', '.zarray', '.zattrs')}
    with pytest.raises(remote.RemoteError, match='array 0 is listed in the metadata, but not there'): remote.fetch(root/'a.zarr', tmp_path/'none')

def test_labels_come_along_and_names_stay_in_the_folder(web, blurred, tmp_path):
    root,folder = web
    write_field(folder/'a.zarr', blurred, 3)
    zarr.open_group(str(folder/'a.zarr'/'labels'), mode='w').attrs['ome'] = dict(labels=['nuclei'])
    write_field(folder/'a.zarr'/'labels'/'nuclei', blurred, 3)
    with remote.fetched(root/'a.zarr') as copy: assert contents(copy)==contents(folder/'a.zarr')
    about = json.loads((folder/'a.zarr'/'zarr.json').read_text())
    about['attributes']['ome']['multiscales'][0]['datasets'][0]['path'] = '../../escaped'
    (folder/'a.zarr'/'zarr.json').write_text(json.dumps(about))
    with pytest.raises(remote.RemoteError, match='no file on this machine can have this name'): remote.fetch(root/'a.zarr', tmp_path/'deep'/'er')
    assert not (tmp_path/'escaped').exists()

def test_a_server_that_fails_is_not_taken_for_an_empty_one(web):
    root,folder = web
    (folder/'a.tif').write_bytes(b'II*')
    assert remote.exists_at(root/'a.tif') and remote.size_at(root/'a.tif')==3 and not remote.exists_at(root/'b.tif')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        nobody = Url(f'http://127.0.0.1:{s.getsockname()[1]}')
    with pytest.raises(remote.RemoteError, match='no answer') as e: remote.exists_at(nobody/'a.tif')
    assert not isinstance(e.value, remote.NotThere)

def test_images_of_a_web_server_are_refocused(web, folder, refocus, temporary, tmp_path):
    root,served = web
    for f in folder.iterdir(): shutil.copy(f, served)
    Handler.odd = {'field0.tif': [503, 'cut']}
    (tmp_path/'list.csv').write_text(f'file,defocus_um\n{root}/field0.tif?key=secret,12\nin/field1.tif,12\n')
    for given,out in ((tmp_path/'list.csv', 'there'), (folder, 'here')):
        said = refocus('run', given, '--out', tmp_path/out, '--defocus-um', tmp_path/'list.csv')
        assert said.code==0 and '2 done' in said.text and 'secret' not in said.text, said.text
    assert contents(tmp_path/'there')==contents(tmp_path/'here') and not [*temporary.iterdir()]
    missing = refocus('run', f'{root}/gone.tif', '--out', tmp_path/'none')
    assert missing.code==1 and 'gone.tif: there is no such file on the server' in missing.text and '1 failed' in missing.text
    for given in ('folder', '*.tif'):
        said = refocus('run', f'{root}/{given}', '--out', tmp_path/'none')
        assert said.code in (1, 2) and 'web servers list no folders' in said.text, said.text
    assert not (tmp_path/'none').exists() and not [*temporary.iterdir()]

def test_addresses_where_only_local_paths_will_do(refocus, folder, tmp_path, monkeypatch):
    for verb,*args in (('run', folder, '--out', 's3://bucket/x'), ('score', folder, '--out', 'https://host/x.csv'), ('trust', 's3://bucket/a.tif', folder),
                       ('run', folder, '--scale-from', 's3://bucket/a.tif'), ('run', 's3://bucket/list.csv')):
        said = refocus(verb, *args)
        assert said.code==2 and 'on this machine' in said.text and '://' in said.text, said.text
    monkeypatch.setitem(__import__('sys').modules, 's3fs', None)
    said = refocus('run', 's3://other/a.tif', '--out', tmp_path/'x')
    assert said.code==2 and "pip install 'refocus_nbdev[cloud]'" in said.text

@pytest.fixture(scope='module')
def s3(tmp_path_factory):
    "A server for S3 with a bucket, and its file system"
    s3fs = pytest.importorskip('s3fs')
    server = pytest.importorskip('moto.server', reason="needs pip install 'refocus_nbdev[cloud-dev]'").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    nowhere = str(tmp_path_factory.mktemp('s3')/'none')
    with pytest.MonkeyPatch.context() as mp:
        given = dict(ENDPOINT_URL='http://{}:{}'.format(*server.get_host_and_port()), ACCESS_KEY_ID='me', SECRET_ACCESS_KEY='secret', DEFAULT_REGION='us-east-1',
                     EC2_METADATA_DISABLED='true', CONFIG_FILE=nowhere, SHARED_CREDENTIALS_FILE=nowhere)
        for name,value in given.items(): mp.setenv(f'AWS_{name}', value)
        mp.delenv('AWS_PROFILE', raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        remote._has_aws_credentials.cache_clear()
        fs = s3fs.S3FileSystem()
        fs.mkdir('bucket')
        yield fs
    s3fs.S3FileSystem.clear_instance_cache()
    remote._has_aws_credentials.cache_clear()
    server.stop()

@pytest.fixture
def bucket(s3, tmp_path): return Url(f's3://bucket/{tmp_path.name}')

def test_a_field_is_complete_only_with_its_marker(bucket, blurred, tmp_path, monkeypatch):
    for kind,options in KINDS.items(): write_field(tmp_path/kind, blurred, **options)
    upload,field = remote._upload,bucket/'plate.zarr/A/1/0'
    for kind in ('2', '3', '2'):
        sent = []
        monkeypatch.setattr(remote, '_upload', lambda file,url: sent.append(url.name) or upload(file, url))
        remote.put(tmp_path/kind, field)
        assert sent[-1]==remote.marker_of(tmp_path/kind) and len(sent)==len(contents(tmp_path/kind))
        with remote.fetched(field) as copy: assert contents(copy)==contents(tmp_path/kind)
    def cut(file, url):
        if url.name=='.zattrs': raise remote.RemoteError('cut')
        upload(file, url)
    monkeypatch.setattr(remote, '_upload', cut)
    with pytest.raises(remote.RemoteError, match='cut'): remote.put(tmp_path/'2', field)
    assert not remote.is_zarr_at(field) and remote.exists_at(field)

def test_images_of_a_bucket_are_refocused_scored_and_described(bucket, folder, refocus, temporary, tmp_path):
    shutil.copy(folder/'field0.tif', folder/'field0_labels.tif')
    (folder/'deep').mkdir()
    shutil.move(folder/'field1.tif', folder/'deep')
    for f in folder.rglob('*.tif'): remote.put(f, bucket/'in'/f.relative_to(folder).as_posix())
    said = refocus('run', f'{bucket}/in', '--recursive', '--out', tmp_path/'there', '--dry-run')
    assert said.code==0 and said.text.count('MB to fetch')==2 and '1 file named as labels' in said.text and not (tmp_path/'there').exists()
    assert refocus('run', f'{bucket}/in', '--recursive', '--out', tmp_path/'there').code==0
    assert contents(tmp_path/'there').keys()=={'field0.tif', 'deep/field1.tif'}
    assert '1 skipped' in refocus('run', f'{bucket}/in/f*0.tif', '--out', tmp_path/'there').text
    for said in ('in focus: ', 'scored before: 1 file'): assert said in refocus('score', f'{bucket}/in/deep', '--out', tmp_path/'scores.csv').text
    assert f'{bucket}/in/deep/field1.tif,' in (tmp_path/'scores.csv').read_text()
    assert f'{bucket}/in/field0.tif\n' in refocus('info', f'{bucket}/in/field0.tif').text
    said = refocus('run', 's3://no-bucket/a.tif', f'{bucket}/in/gone.tif', '--out', tmp_path/'there')
    assert said.code==1 and said.text.count('there is no such file on the server')==2
    assert not [*temporary.iterdir()]

def test_a_public_bucket_needs_no_credentials(s3, bucket, folder, tmp_path, monkeypatch):
    remote.put(folder/'field0.tif', bucket/'a.tif')
    for name in ('ACCESS_KEY_ID', 'SECRET_ACCESS_KEY'): monkeypatch.delenv(f'AWS_{name}')
    monkeypatch.setattr(remote, '_has_aws_credentials', remote._has_aws_credentials.__wrapped__)
    with pytest.raises(remote.RemoteError, match='the server refuses access; give credentials'): remote.fetch(bucket/'a.tif', tmp_path)
    s3.chmod(f'{bucket}/a.tif', 'public-read')
    assert file_hash(remote.fetch(bucket/'a.tif', tmp_path))==file_hash(folder/'field0.tif')

def test_a_field_of_a_plate_that_is_a_result_is_refused(bucket, blurred, refocus, tmp_path):
    plate = tmp_path/'plate.zarr'
    zarr.open_group(str(plate), mode='w').attrs['ome'] = dict(plate=dict(wells=[dict(path='A/1')]))
    zarr.open_group(str(plate/'A'/'1'), mode='w').attrs['ome'] = dict(well=dict(images=[dict(path='0')]))
    zarr.open_group(str(plate/'A'), mode='a')
    write_field(plate/'A'/'1'/'0', blurred, 3)
    assert refocus('run', plate, '--out', tmp_path/'out').code==0
    for name in contents(tmp_path/'out'): remote.put(tmp_path/'out'/name, bucket/name)
    said = refocus('run', f'{bucket}/plate.zarr/A/1/0', '--out', tmp_path/'again')
    assert said.code==1 and f'{bucket}/plate.zarr/A/1/0: is a result of refocus already' in said.text, said.text
    said = refocus('run', f'{bucket}/plate.zarr', '--out', tmp_path/'again')
    assert said.code==1 and 'is a plate' in said.text

def test_a_plate_goes_from_bucket_to_bucket(bucket, web, blurred, refocus, temporary, tmp_path, monkeypatch):
    "An OME-Zarr plate in a bucket or on a web server: equal to one on this machine; what is done is not done again, what failed is"
    from refocus_nbdev.io.hcs import init_plate
    root,served = web
    plate = init_plate(served/'plate.zarr', 'plate', dict.fromkeys(('A/1/0', 'A/1/1', 'B/2/0')), 'an example')
    for i,path in enumerate(('A/1/0', 'A/1/1', 'B/2/0')): write_field(plate/path, blurred[i:64+i,:64], 3)
    for name in contents(plate): remote.put(plate/name, bucket/'plate.zarr'/name)
    monkeypatch.chdir(tmp_path)
    fast = '--model', 'nuclei-fast'
    assert refocus('plate', plate, 'here.zarr', *fast).code==0
    assert refocus('plate', f'{root}/plate.zarr', 'from_web.zarr', *fast).code==0
    upload = remote._upload
    def cut(file, url):
        if 'B/2/0' in str(url): raise remote.RemoteError(f'{url}: cut')
        upload(file, url)
    monkeypatch.setattr(remote, '_upload', lambda file,url: cut(file, url) if '/0/' in str(url) and 'zarr.json' not in url.name else upload(file, url))
    said = refocus('plate', f'{bucket}/plate.zarr', f'{bucket}/out.zarr', *fast)
    assert said.code==1 and '2 done' in said.text and 'cut' in said.text and not remote.is_zarr_at(bucket/'out.zarr/B/2/0'), said.text
    monkeypatch.setattr(remote, '_upload', upload)
    elsewhere = tmp_path/'elsewhere' # Another machine sees only the bucket
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    said = refocus('plate', f'{bucket}/plate.zarr', f'{bucket}/out.zarr', *fast)
    assert said.code==0 and '1 done, 2 done before' in said.text, said.text
    assert 'no sheets of fields' in said.text
    def table(): # Without what may stand in another order
        return pd.read_csv(io.StringIO(remote.text_at(bucket/'out_tables/fields.csv'))).drop(columns=['note','doubts','codes'])
    before = table()
    _,rows = remote.names_at(bucket/'out_tables/rows')
    remote.remove_file(bucket/'out_tables/rows'/rows[0]) # As if the machine had died before it wrote the row
    assert '3 done before' in refocus('plate', f'{bucket}/plate.zarr', f'{bucket}/out.zarr', *fast).text
    pd.testing.assert_frame_equal(table(), before)
    def pixels(path): return {k: v for k,v in contents(path).items() if '/c/' in k}
    for field in ('A/1/0', 'A/1/1', 'B/2/0'):
        with remote.fetched(bucket/'out.zarr'/field) as copy: assert pixels(copy)==pixels(tmp_path/'here.zarr'/field)==pixels(tmp_path/'from_web.zarr'/field)
    for args,words in (((f'{bucket}/plate.zarr', f'{bucket}/plate.zarr'), 'no result of refocus'), ((plate, f'{root}/out.zarr'), 'web servers take no results'),
                       ((plate, f'{bucket}/folder'), 'ends with .zarr'), ((f'{bucket}/none.zarr', 'x.zarr'), 'no OME-Zarr')):
        said = refocus('plate', *args, *fast)
        assert said.code in (1,2) and words in said.text, said.text
    table = remote.text_at(bucket/'out_tables/fields.csv')
    assert f'{bucket}/plate.zarr/A/1/0' in table and table.count(',done,')==3 and 'to do' not in table, table
    assert not (tmp_path/'out_tables').exists() and not (elsewhere/'out_tables').exists() and not [*temporary.iterdir()]

def test_a_plate_of_files_comes_from_servers(bucket, web, blurred, refocus, temporary, tmp_path, monkeypatch):
    "Files in a bucket, or those on a web server that a list names, become a folder or an OME-Zarr plate as files on this machine do"
    root,served = web
    here = tmp_path/'plate'
    here.mkdir()
    for name in ('B02_s1_w1', 'B02_s1_w2', 'B03_s1_w1', 'B03_s1_w2'): tifffile.imwrite(here/f'{name}.tif', blurred[:64,:64])
    for file in here.iterdir():
        remote.put(file, bucket/'plate'/file.name)
        shutil.copy(file, served)
    (tmp_path/'list.csv').write_text('file,Metadata_Well,Metadata_Channel\n'+''.join(f'{root}/{f.name},{f.name[:3]},{f.name[-5]}\n' for f in here.iterdir()))
    monkeypatch.chdir(tmp_path)
    fast = '--model', 'nuclei-fast', '--pixel-um', '0.645'
    for source,name in ((here, 'here'), (f'{bucket}/plate', 'bucket'), (f'{bucket}/plate/B0*.tif', 'glob'), ('list.csv', 'web')):
        for out in (f'{name}_out', f'{name}.zarr'):
            said = refocus('plate', source, out, *fast)
            assert said.code==0 and '0 done before, 0 failed' in said.text, said.text
        def pixels(path): return {k: v for k,v in contents(tmp_path/path).items() if '/c/' in k or k.endswith('.tif')}
        def tiffs(path): return {f.name: tifffile.imread(f).tobytes() for f in (tmp_path/path).glob('*.tif')}
        assert tiffs(f'{name}_out')==tiffs('here_out') and len(tiffs('here_out'))==4
        chunks = {k: v for k,v in contents(tmp_path/f'{name}.zarr').items() if '/c/' in k}
        assert chunks=={k: v for k,v in contents(tmp_path/'here.zarr').items() if '/c/' in k} and chunks
    table = pd.read_csv(tmp_path/'glob_tables/fields.csv')
    assert set(table.status)=={'done'} and all(table.source.str.startswith(f'{bucket}/plate/')), table
    said = refocus('plate', f'{bucket}/plate', 'bucket.zarr', *fast)
    assert said.code==0 and '2 done before' in said.text, said.text
    assert not [*temporary.iterdir()]
