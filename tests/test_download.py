import hashlib, io, os, re, signal, socket, stat, struct, subprocess, sys, threading, time, tracemalloc, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, requests, tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import ENV, SAMPLE, contents
from refocus_nbdev.plates import download
from refocus_nbdev.plates.download import DownloadError, Web, bbbc006, bbbc038
from refocus_nbdev.io.images import read_image
from refocus_nbdev.plates.names import parse_name, plane_files
from refocus_nbdev.plates.pairs import bbbc006_pairs

LABELS = 'BBBC006_v1_labels'
def plane(z): return f'BBBC006_v1_images_z_{z:02d}'

class Handler(BaseHTTPRequestHandler):
    "Serves the files of a `Site`, with the faults it is told to have"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def do_GET(self):
        site,name = self.server.site, self.path[1:]
        fault = site.next_fault(name)
        if fault=='reset': return self.hang_up(0)
        if isinstance(fault, int) or name not in site.files: return self.answer(fault or 404, b'no')
        if fault=='html': return self.answer(200, b'<html>Please log in</html>')
        span,whole = re.fullmatch(r'bytes=(\d*)-(\d+)', self.headers.get('Range', '')), site.files[name]
        if span and isinstance(site.ranges, int) and site.ranges>1: return self.answer(site.ranges, b'no parts')
        if not span or not site.ranges: return self.answer(200, whole, fault)
        start,stop = (int(span[1]), min(int(span[2])+1, len(whole))) if span[1] else (max(0, len(whole)-int(span[2])), len(whole))
        self.answer(206, whole[start:stop], fault, f'bytes {start}-{stop-1}/{len(whole)}')

    def answer(self, code, body, fault=None, span=None):
        site = self.server.site
        self.send_response(code)
        for k,v in {'Content-Range':span, 'Retry-After':'0' if code==429 else None, 'Content-Length':str(len(body))}.items():
            if v: self.send_header(k, v)
        self.end_headers()
        if fault: body = body[:len(body)//2]
        site.sent += len(body)
        self.wfile.write(body)
        if fault=='stall': site.over.wait(60)
        if fault: self.hang_up()

    def hang_up(self, linger=1):
        "Close the connection: in good order, or with `linger` 0 so that the other side sees a reset"
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, linger))
        self.connection.close() if linger==0 else self.connection.shutdown(socket.SHUT_RDWR)

class Quiet(ThreadingHTTPServer):
    daemon_threads,block_on_close = True,False
    def handle_error(self, *args): pass

class Site:
    "A server on this machine: its files, what it was asked for, what is wrong with it"
    def __init__(self, files):
        self.files,self.ranges,self.asked,self.sent,self.faults,self.always = dict(files), True, [], 0, [], None
        self.over,self.lock,self.http = threading.Event(), threading.Lock(), Quiet(('127.0.0.1', 0), Handler)
        self.http.site,self.url = self, f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def next_fault(self, name):
        "One of `faults` for each request, then `always`"
        with self.lock:
            self.asked.append(name)
            return self.faults.pop(0) if self.faults else self.always

    def well(self):
        "Nothing is wrong any more, nothing was asked yet"
        self.faults,self.always,self.asked,self.sent = [], None, [], 0

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

def zipped(files, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', **options) as z:
        for name,data in files.items(): z.writestr(name, data)
    return out.getvalue()

def second_channel(name): return re.sub(r'_w1[0-9a-f]{8}', '_w2'+'0'*8, name)

@pytest.fixture(scope='session')
def archives():
    "Archives like those of BBBC006, by name; plane 10 has a folder and is packed, plane 16 has neither"
    junk = np.random.default_rng(0).bytes(6_000_000)
    found = {}
    for z,prefix,options in ((10, f'{plane(10)}/', dict(compression=zipfile.ZIP_DEFLATED)), (16, '', {})):
        images = {p.name: p.read_bytes() for p in sorted((SAMPLE/plane(z)).iterdir())}
        both = {n:d for name,data in images.items() for n,d in ((name, data), (second_channel(name), data[::-1]))}
        found[f'{plane(z)}.zip'] = zipped({'readme.bin':junk, **{prefix+n:d for n,d in both.items()}}, **options)
    labels = {f'{LABELS}/{p.name}': p.read_bytes() for p in sorted((SAMPLE/LABELS).iterdir())}
    return {**found, f'{LABELS}.zip': zipped(labels), 'BBBC006_v1_counts.csv': b'well,site,count\na05,1,90\n'}

@pytest.fixture
def site(archives, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setitem(ENV, 'NO_PROXY', '127.0.0.1')
    s = Site(archives)
    yield s
    s.close()

def hasty(site=None): return Web(tries=2, backoff_s=0, timeout_s=0.3 if site and 'stall' in [site.always, *site.faults] else 20)

def wanted(site, dest, planes=(10, 16), **options): return bbbc006(dest, planes=planes, url=site.url, web=hasty(site), **options)

def fetched(site, dest, **options):
    d = wanted(site, dest, **options)
    assert d.fetch()==[]
    return d

def images(dest): return {n:d for n,d in contents(dest).items() if '/.' not in f'/{n}'}

def hidden(dest): return {n for n in contents(dest).keys() - images(dest).keys() if not n.endswith('.json')}

def original(name, data):
    "Is a file of the plate what was packed?"
    same = name.replace('_w2'+'0'*8, '_w1*')
    source = SAMPLE/name if same==name else next((SAMPLE/same).parent.glob(Path(same).name))
    return data==(source.read_bytes() if same==name else source.read_bytes()[::-1])

def fields(dest, z): return {parse_name(p)[:2] for p in (dest/plane(z)).iterdir()}

def test_what_comes_is_what_was_packed(site, archives, tmp_path):
    d = fetched(site, tmp_path, fields=4)
    found = images(tmp_path)
    assert len(found)==8 and all(original(n, b) for n,b in found.items())
    assert len(d.fetched)==8 and sum(d.fetched.values())==sum(map(len, found.values()))
    assert len(bbbc006_pairs(tmp_path, [10], 16))==4

def test_only_a_small_share_is_sent(site, archives, tmp_path):
    fetched(site, tmp_path, fields=2)
    assert site.sent < 0.1*sum(len(archives[f'{plane(z)}.zip']) for z in (10, 16)) and len(site.asked)==2+4

def test_again_nothing_is_asked(site, tmp_path):
    first = fetched(site, tmp_path, labels=True)
    before = contents(tmp_path)
    site.well()
    again = fetched(site, tmp_path, labels=True)
    assert site.asked==[] and not again.fetched and contents(tmp_path)==before
    assert len(first.fetched)==2*16+16+1

def test_fields_are_nested_and_the_same_in_every_plane(site, tmp_path):
    chosen = []
    for n in (3, 12, 15):
        fetched(site, tmp_path/str(n), fields=n)
        assert len(fields(tmp_path/str(n), 10))==n and fields(tmp_path/str(n), 10)==fields(tmp_path/str(n), 16)
        chosen.append(fields(tmp_path/str(n), 10))
    assert chosen[0] < chosen[1] < chosen[2]
    assert {s for _,s in chosen[1]}=={1} and {s for _,s in chosen[2]-chosen[1]}=={2}

def test_the_plate_is_covered_evenly():
    wells = sorted(download._WELL_ORDER, key=download._WELL_ORDER.get)
    for n in (16, 32, 64):
        quarters = [(w<'i', int(w[1:])<13) for w in wells[:n]]
        assert all(abs(quarters.count(q)-n/4) <= 2 for q in {(a, b) for a in (True, False) for b in (True, False)})

def test_channels(site, tmp_path):
    fetched(site, tmp_path/'w2', fields=2, channel='w2')
    fetched(site, tmp_path/'both', fields=2, channel='both')
    assert {parse_name(n).channel for n in images(tmp_path/'w2')}=={2} and len(images(tmp_path/'w2'))==4
    assert len(plane_files(tmp_path/'both', 10, 1))==len(plane_files(tmp_path/'both', 10, 2))==2
    assert all(original(n, b) for n,b in images(tmp_path/'both').items())

def test_wells(site, tmp_path):
    fetched(site, tmp_path, wells=['A05', 'p14'])
    assert fields(tmp_path, 10)=={('a05', 1), ('a05', 2), ('p14', 1)}
    with pytest.raises(DownloadError, match='no field of well b01'): wanted(site, tmp_path, wells=['b01']).fetch()

def test_labels_and_counts(site, archives, tmp_path):
    fetched(site, tmp_path, fields=3, labels=True)
    assert fields(tmp_path, 10)=={parse_name(p)[:2] for p in (tmp_path/LABELS).iterdir()}
    assert (tmp_path/'BBBC006_v1_counts.csv').read_bytes()==archives['BBBC006_v1_counts.csv']
    assert all(original(n, b) for n,b in images(tmp_path).items() if n.startswith('BBBC006_v1_l'))

@pytest.mark.parametrize('ranges', [False, 416])
def test_a_server_without_ranges(site, archives, tmp_path, ranges):
    site.ranges = ranges
    fetched(site, tmp_path, fields=2, labels=True)
    assert len(images(tmp_path))==2*2+2+1 and all(original(n, b) for n,b in images(tmp_path).items() if n.endswith('.tif'))
    assert not hidden(tmp_path)
    site.well()
    fetched(site, tmp_path, fields=2, labels=True)
    assert site.asked==[]

def test_a_whole_archive_that_is_cut(site, tmp_path):
    site.ranges,site.faults = False,[None]*4+['cut']
    fetched(site, tmp_path, fields=2)
    assert len(images(tmp_path))==4 and not hidden(tmp_path)
    site.faults,site.always = [None]*4,'cut'
    with pytest.raises(DownloadError, match=r'z_10.zip: the connection was cut 3 times'): wanted(site, tmp_path/'new', fields=2).fetch()
    assert not contents(tmp_path/'new')

@pytest.mark.parametrize('when, fault', [(0, 'cut'), (0, 'stall'), (0, 500), (0, 429), (3, 'cut'), (3, 'reset'), (3, 'stall')])
def test_a_fault_that_passes(site, tmp_path, fault, when):
    site.faults = [None]*when + [fault]
    fetched(site, tmp_path, fields=2, jobs=1)
    assert len(images(tmp_path))==4 and all(original(n, b) for n,b in images(tmp_path).items())

SAID = {'cut':'cut 3 times', 'reset':'no answer (Connection reset by peer)', 'stall':'timed out', 500:'500 Internal Server Error', 404:'check --url', 'html':'other bytes'}

@pytest.mark.parametrize('fault', SAID)
def test_a_fault_that_stays(site, tmp_path, fault):
    site.faults,site.always = [None]*4,fault
    with pytest.raises(DownloadError) as e: wanted(site, tmp_path, fields=4, jobs=1).fetch()
    assert str(e.value).startswith(f'{site.url}/{plane(10)}.zip: ') and SAID[fault].lower() in str(e.value).lower()
    kept = images(tmp_path)
    assert len(kept)==2 and all(original(n, b) for n,b in kept.items()) and not hidden(tmp_path)
    site.well()
    rest = fetched(site, tmp_path, fields=4)
    assert len(rest.fetched)==6 and len(images(tmp_path))==8

def test_nobody_answers(tmp_path):
    with pytest.raises(DownloadError, match='Connection refused'): bbbc006(tmp_path, url='http://127.0.0.1:9', web=hasty()).fetch()
    with pytest.raises(DownloadError, match='no answer'): bbbc006(tmp_path, url='http://nowhere.invalid', web=hasty()).fetch()

WRONG = [b'<html>Please log in</html>', zipped({'holiday.jpg':b'1'}), 'cut', 'middle']

@pytest.mark.parametrize('ranges, wrong', [*((True, w) for w in WRONG), (False, WRONG[0])], ids=str)
def test_a_wrong_archive(site, archives, tmp_path, ranges, wrong):
    good,site.ranges = archives[f'{plane(16)}.zip'],ranges
    site.files[f'{plane(16)}.zip'] = {'cut':good[:-3000], 'middle':good[:-3000]+bytes(1000)+good[-2000:]}.get(wrong, wrong)
    with pytest.raises(DownloadError, match='is no zip archive|belongs to the data set') as e: wanted(site, tmp_path, planes=[16]).fetch()
    assert f'{plane(16)}.zip' in str(e.value) and not images(tmp_path) and not hidden(tmp_path)

def damaged(site, at, what):
    "Change the archive of plane 16; `at` finds the place in it"
    whole = bytearray(site.files[f'{plane(16)}.zip'])
    i = at(bytes(whole))
    whole[i:i+len(what)] = what
    site.files[f'{plane(16)}.zip'] = bytes(whole)

def spoiled(site, tmp_path, said):
    "The first file of plane 16 is reported, all others are here"
    d = wanted(site, tmp_path, planes=[16])
    notes = d.fetch()
    assert len(notes)==1 and said in notes[0] and '_a05_s1_w1' in notes[0] and site.url in notes[0]
    assert len(images(tmp_path))==15 and all(original(n, b) for n,b in images(tmp_path).items()) and not hidden(tmp_path)

def in_member(z): return z.index(b'_a05_s1_w1')+3000
def in_directory(z): return z.index(b'PK\1\2', z.rindex(b'readme.bin'))

def test_a_damaged_member(site, tmp_path):
    damaged(site, in_member, bytes(100))
    spoiled(site, tmp_path, 'Bad CRC')

def test_an_encrypted_member(site, tmp_path):
    damaged(site, lambda z: in_directory(z)+8, b'\1')
    spoiled(site, tmp_path, 'encrypted')

def test_a_bomb_is_not_unpacked(site, tmp_path):
    packed = bytearray(zipped({f'a/{GOOD}':bytes(70_000_000), 'b/'+GOOD.replace('_s1', '_s2'):bytes(70_000_000)}, compression=zipfile.ZIP_DEFLATED))
    struct.pack_into('<I', packed, packed.rindex(b'PK\1\2')+24, 1000)
    site.files[f'{plane(16)}.zip'] = bytes(packed)
    tracemalloc.start()
    notes = wanted(site, tmp_path, planes=[16]).fetch()
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert len(notes)==2 and 'claims 70000000' in notes[0] and not images(tmp_path)

GOOD = 'mcf-z-stacks-03212011_a05_s1_w11f02b57c-980d-4d1b-b67d-8245d05d98ac.tif'
EVIL = ['../../../evil.tif', '/etc/evil', '..\\..\\'+GOOD, 'C:\\'+GOOD, 'C:'+GOOD, GOOD+'\n', GOOD.upper(), GOOD+'/', f'{GOOD}/..', f'.{GOOD}.partial', '.', '..', 'CON', '~/.profile', 'a'*300,
        GOOD.replace('03212011', '٠٣٢١٢٠١١'), *(GOOD.replace('a05', w) for w in ('a٠٥', 'z05', 'a25', 'a00', 'A05'))]

@given(st.lists(st.text(max_size=5), max_size=3), st.sampled_from(['', GOOD, *EVIL]), st.text(max_size=2))
@settings(max_examples=50, deadline=None)
def test_no_name_leads_out_of_the_folder(parts, name, end):
    assert download._in_plane('folder', '/'.join([*parts, name+end])) in (None, f'folder/{GOOD}')

def test_hostile_names(site, tmp_path):
    files = {n:b'evil' for n in EVIL} | {f'{folder}{GOOD}':b'good' for folder in ('', 'deep/', '../../', '/tmp/')}
    site.files[f'{plane(16)}.zip'] = zipped(files)
    fetched(site, tmp_path/'in'/'dest', planes=[16])
    assert images(tmp_path)=={f'in/dest/{plane(16)}/{GOOD}': b'good'}

def test_a_link_in_an_archive_is_not_followed(site, tmp_path):
    (tmp_path/'secret').write_text('mine')
    link = zipfile.ZipInfo(GOOD)
    link.create_system,link.external_attr = 3,(stat.S_IFLNK|0o777)<<16
    site.files[f'{plane(16)}.zip'] = zipped({link:str(tmp_path/'secret'), GOOD.replace('_s1', '_s2'):b'good'})
    fetched(site, tmp_path/'dest', planes=[16])
    assert list(images(tmp_path/'dest').values())==[b'good'] and (tmp_path/'secret').read_text()=='mine'

def test_a_name_for_two_files(site, tmp_path):
    site.files[f'{plane(16)}.zip'] = zipped({f'a/{GOOD}':b'one', f'b/{GOOD}':b'two'})
    with pytest.raises(DownloadError, match='twice'): wanted(site, tmp_path, planes=[16]).fetch()
    assert not contents(tmp_path)

def test_a_field_that_one_plane_lacks(site, tmp_path):
    files = {p.name: p.read_bytes() for p in (SAMPLE/plane(16)).iterdir() if '_a05_s1' not in p.name}
    site.files[f'{plane(16)}.zip'] = zipped(files)
    notes = wanted(site, tmp_path).fetch()
    assert len(notes)==1 and f'a05 s1 w1 of {plane(16)}' in notes[0] and len(images(tmp_path))==31

@pytest.mark.parametrize('ranges, planes, share', [(True, (10, 16), 0.1), (True, (10, 16), 1.1), (False, (10,), 1.1)])
def test_no_room(site, archives, tmp_path, monkeypatch, ranges, planes, share):
    site.ranges,size = ranges,len(archives[f'{plane(10)}.zip']) - 6_000_000*ranges
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda p: type('', (), dict(free=share*size)))
    with pytest.raises(DownloadError, match='are needed, .* are free'): wanted(site, tmp_path, planes=planes, channel='both').fetch()
    assert not images(tmp_path) and not hidden(tmp_path)

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no device that is full')
def test_the_disk_fills_up(site, tmp_path, monkeypatch):
    first,write = sorted(p.name for p in (SAMPLE/plane(10)).iterdir())[0],Path.write_bytes
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_bytes', lambda p, data: write(Path('/dev/full') if p.name.endswith(first[-50:]) else p, data))
        with pytest.raises(DownloadError, match='No space left on device.*free some space'): wanted(site, tmp_path, planes=[10]).fetch()
    assert not hidden(tmp_path) and all(original(n, b) for n,b in images(tmp_path).items())
    fetched(site, tmp_path, planes=[10])
    assert len(images(tmp_path))==16

@pytest.mark.skipif(os.name!='posix', reason='no such device')
def test_nothing_can_be_written(site):
    with pytest.raises(DownloadError, match='cannot be written.*--dest'): wanted(site, '/dev/null/plate', fields=1).fetch()

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may write anywhere')
def test_a_folder_that_is_read_only(site, tmp_path):
    fetched(site, tmp_path/'dest', fields=1)
    for p in (tmp_path/'dest', tmp_path/'dest'/plane(10)): p.chmod(0o555)
    with pytest.raises(DownloadError, match='cannot be written'): wanted(site, tmp_path/'dest', fields=2).fetch()
    fetched(site, tmp_path/'dest', fields=1)

def cut(p): p.write_bytes(p.read_bytes()[:-1])
def flipped(p): p.write_bytes(p.read_bytes()[:-1]+bytes([p.read_bytes()[-1]^1]))

@pytest.mark.parametrize('harm', [cut, flipped])
def test_a_damaged_file_is_fetched_anew(site, tmp_path, harm):
    fetched(site, tmp_path, fields=4)
    before = contents(tmp_path)
    harm(sorted((tmp_path/plane(16)).iterdir())[1])
    site.well()
    d = fetched(site, tmp_path, fields=4)
    assert len(d.fetched)==1 and site.asked==[f'{plane(16)}.zip']*2 and contents(tmp_path)==before

@pytest.mark.parametrize('record', ['', '{', '[]'])
def test_a_damaged_record_is_made_anew(site, tmp_path, record):
    fetched(site, tmp_path, fields=2)
    before = contents(tmp_path)
    for p in tmp_path.glob('.*.json'): p.write_text(record)
    assert not fetched(site, tmp_path, fields=2).fetched and contents(tmp_path)==before

def test_another_server_may_have_more(site, archives, tmp_path):
    few = Site({**archives, f'{plane(16)}.zip': zipped({p.name:p.read_bytes() for p in (SAMPLE/plane(16)).iterdir() if '_a05' in p.name})})
    fetched(few, tmp_path, planes=[16])
    few.close()
    assert len(images(tmp_path))==2 and len(fetched(site, tmp_path, planes=[16]).fetched)==14

def test_images_unpacked_by_hand_are_kept(site, tmp_path):
    for n,b in contents(SAMPLE).items():
        (tmp_path/n).parent.mkdir(exist_ok=True)
        if n.startswith((plane(10), plane(16))): (tmp_path/n).write_bytes(b)
    assert not fetched(site, tmp_path).fetched
    site.well()
    assert not fetched(site, tmp_path).fetched and site.asked==[]

def begin(start, site, dest):
    "The command in the background, with two files here and the server silent"
    site.faults,site.always = [None]*4,'stall'
    running = start('download', 'bbbc006', '--planes', '10,16', '--dest', dest, '--url', site.url)
    end = time.monotonic()+60
    while len(images(dest))<2 and running.poll() is None and time.monotonic()<end: time.sleep(0.02)
    return running

def test_killed_in_the_middle(site, start, tmp_path):
    running = begin(start, site, tmp_path)
    running.kill()
    running.wait()
    kept = images(tmp_path)
    assert 2 <= len(kept) < 32 and all(original(n, b) for n,b in kept.items())
    site.well()
    d = fetched(site, tmp_path)
    assert len(d.fetched)==32-len(kept) and len(images(tmp_path))==32 and not hidden(tmp_path)

@pytest.mark.skipif(os.name!='posix', reason='no such signal')
def test_interrupted_while_the_server_is_silent(site, start, tmp_path):
    running = begin(start, site, tmp_path)
    before = time.monotonic()
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[0]
    assert running.returncode==130 and time.monotonic()-before < 20 and 'interrupted; files that are complete are kept' in said and 'Traceback' not in said
    assert len(images(tmp_path))>=2 and not hidden(tmp_path)

def test_the_command(in_process, site, tmp_path):
    code,text = in_process('download', 'bbbc006', '--planes', '10,16', '--fields', 2, '--dest', tmp_path, '--url', site.url)
    assert code==0 and '4 files' in text and f'next: refocus train "{tmp_path}" --planes 10' in text
    code,text = in_process('download', 'bbbc006', '--planes', '10,16', '--fields', 3, '--dest', tmp_path, '--url', site.url)
    assert code==0 and '2 files' in text and '4 were there already' in text

def test_a_failure_has_a_sentence_and_exit_code_1(in_process, site, tmp_path):
    damaged(site, in_member, bytes(100))
    code,text = in_process('download', 'bbbc006', '--planes', '16', '--dest', tmp_path/'a', '--url', site.url)
    assert code==1 and '15 files' in text and '1 failed' in text and 'CRC' in text and 'next:' not in text
    del site.files[f'{plane(16)}.zip']
    code,text = in_process('download', 'bbbc006', '--planes', '10,16', '--dest', tmp_path/'b', '--url', site.url)
    assert code==1 and f'{plane(16)}.zip: the server answers 404' in text and not images(tmp_path/'b')

@pytest.mark.parametrize('wrong', [('bbbc007',), ('bbbc006','--planes','34'), ('bbbc006','--planes','5-x'), ('bbbc006','--channel','w3'), ('bbbc006','--wells','a01,q01'),
    ('bbbc006','--fields','-1'), ('bbbc006','--jobs','0'), ('bbbc006','--url','ftp://x'), ('bbbc006','--dest',__file__), ('bbbc038','--planes','1'), ()], ids=' '.join)
def test_wrong_arguments(in_process, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code,text = in_process('download', *wrong)
    assert code==2 and text and not list(tmp_path.iterdir())

def test_help_has_an_example(in_process):
    code,text = in_process('download', '--help')
    assert code==0 and 'refocus download bbbc006' in text.split('Example')[1]

@pytest.mark.parametrize('ranges', [True, False])
def test_dry_run_writes_nothing(in_process, site, tmp_path, ranges):
    site.ranges = ranges
    code,text = in_process('download', 'bbbc006', '--planes', '10,16', '--fields', 2, '--labels', '--dest', tmp_path/'new', '--url', site.url, '--dry-run')
    assert code==0 and not (tmp_path/'new').exists()
    assert f'{7 if ranges else 4} files' in text.splitlines()[-1]
    assert all(re.search(r'\d MB', l) for l in text.splitlines()) and all(plane(z) in text for z in (10, 16))

def test_a_login_page_in_between(monkeypatch, tmp_path):
    page = type('', (), dict(url='http://login', status_code=200, headers={}))
    monkeypatch.setattr(requests.Session, 'request', lambda *args, **kw: page)
    with pytest.raises(DownloadError, match='not encrypted'): bbbc006(tmp_path).fetch()

def test_needs_no_torch():
    done = subprocess.run([sys.executable, '-c', 'import sys, refocus_nbdev.plates.download; print({"torch","fastai","matplotlib"} & set(sys.modules))'], capture_output=True, text=True, env=ENV)
    assert done.stdout.strip()=='set()', done.stderr

def sha(*o): return hashlib.sha256(str(o).encode()).hexdigest()

def png(a):
    out = io.BytesIO()
    Image.fromarray(a).save(out, 'PNG')
    return out.getvalue()

@pytest.fixture(scope='session')
def nuclei(sharp):
    "Images as in BBBC038, by name: fluorescence, but for the third and the fifth"
    grey = np.clip((sharp-100.)/8, 0, 255).astype(np.uint8)
    names = sorted(map(sha, range(6)))
    found = {n: np.dstack([np.roll(grey, 9*i, 1)]*3 + [np.full_like(grey, 255)]) for i,n in enumerate(names)}
    found[names[2]][...,1] //= 2
    found[names[4]][...,:3] = 255-found[names[4]][...,:3]
    return found

def strips(image, k=5): return [(image[...,0]>60) & (np.arange(image.shape[1])%k==i) for i in range(k)]

@pytest.fixture
def bowl(site, nuclei):
    "A site with the archive of BBBC038"
    files = {f'stage1_train/{n}/images/{n}.png': png(a) for n,a in nuclei.items()}
    files |= {f'stage1_train/{n}/masks/{sha(n, k)}.png': png(m) for n,a in nuclei.items() for k,m in enumerate(strips(a))}
    site.files = {'stage1_train.zip': zipped(files)}
    return site

def stained(nuclei): return sorted(nuclei)[2]
def fluorescent(nuclei): return [n for i,n in enumerate(sorted(nuclei)) if i not in (2, 4)]

def nuclei_of(site, dest, **options):
    d = bbbc038(dest, url=site.url, web=hasty(), **options)
    assert d.fetch()==[]
    return d

@pytest.mark.parametrize('ranges', [True, False])
def test_fluorescence_becomes_grey(bowl, nuclei, tmp_path, ranges):
    bowl.ranges = ranges
    d = nuclei_of(bowl, tmp_path)
    assert {p.stem for p in (tmp_path/'images').iterdir()}==set(fluorescent(nuclei)) and not hidden(tmp_path)
    for n in fluorescent(nuclei):
        im = read_image(tmp_path/'images'/f'{n}.png')
        assert im.pixels.dtype==np.uint8 and (im.pixels==nuclei[n][...,0]).all()
    assert 'left out: 1 bright background, 1 stained tissue' in d.summary(0) and '--sharp-only' in d.summary(0)

def test_masks_become_labels(bowl, nuclei, tmp_path):
    nuclei_of(bowl, tmp_path, labels=True)
    assert {p.stem for p in (tmp_path/'labels').iterdir()}==set(fluorescent(nuclei))
    for n in fluorescent(nuclei):
        labels = tifffile.imread(tmp_path/'labels'/f'{n}.tif')
        assert labels.dtype==np.uint16 and ((labels>0)==(nuclei[n][...,0]>60)).all()
        assert all(len(np.unique(labels[m]))==1 for m in strips(nuclei[n]) if m.any())

def test_so_many_fluorescence_images(bowl, nuclei, tmp_path):
    for n in (1, 3): assert len(nuclei_of(bowl, tmp_path, fields=n, labels=True).fetched) and len(list((tmp_path/'images').iterdir()))==n
    assert [p.stem for p in sorted((tmp_path/'labels').iterdir())]==fluorescent(nuclei)[:3]

def test_nothing_of_it_is_asked_twice(bowl, tmp_path):
    nuclei_of(bowl, tmp_path)
    bowl.well()
    assert nuclei_of(bowl, tmp_path).summary(0).count('0 files') and bowl.asked==[]
    d = nuclei_of(bowl, tmp_path, labels=True)
    assert {n.split('/')[0] for n in d.fetched}=={'labels'}
    (tmp_path/'images'/'x').write_text('')
    cut(sorted((tmp_path/'images').glob('*.png'))[0])
    assert len(nuclei_of(bowl, tmp_path, labels=True).fetched)==1

def test_what_was_made_is_known_before_the_end(bowl, nuclei, tmp_path):
    d = bbbc038(tmp_path, url=bowl.url, web=hasty()).look()
    name = f'images/{fluorescent(nuclei)[0]}.png'
    d.archives[0].fetch(name)
    assert bbbc038(tmp_path, url=bowl.url, web=hasty()).archives[0].complete(name)

def test_many_small_members_come_in_one_piece(bowl, tmp_path):
    nuclei_of(bowl, tmp_path, labels=True)
    assert len(bowl.asked)==2

def test_an_image_that_is_none(bowl, nuclei, tmp_path):
    with zipfile.ZipFile(io.BytesIO(bowl.files['stage1_train.zip'])) as z: files = {n: z.read(n) for n in z.namelist()}
    wrong = fluorescent(nuclei)[0]
    for data in (b'not a picture', png(np.zeros((5,5), np.uint16)), files[f'stage1_train/{wrong}/images/{wrong}.png'][:900]):
        bowl.files['stage1_train.zip'] = zipped({**files, f'stage1_train/{wrong}/images/{wrong}.png': data})
        dest = tmp_path/str(len(data))
        notes = bbbc038(dest, url=bowl.url, web=hasty()).fetch()
        assert len(notes)==1 and wrong in notes[0] and len(list((dest/'images').iterdir()))==3

@pytest.mark.skipif('REFOCUS_DATA' not in os.environ, reason='needs the real images')
def test_the_real_fluorescence_images_pass():
    files = sorted(Path(os.environ['REFOCUS_DATA']).glob('dsb2018/*/images/*.png'))[::16]
    if not files: pytest.skip('no such images')
    kept = [download._grey_png(p.read_bytes()) for p in files]
    assert all(isinstance(k, bytes) for k in kept)
    assert all((np.array(Image.open(io.BytesIO(k)))==np.array(Image.open(p))).all() for k,p in zip(kept, files))
