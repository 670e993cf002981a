"""A plate on a Dask cluster of two processes: workers die, hang and have full disks, and the scheduler goes"""
import json, os, re, resource, signal, subprocess, sys, time
from threading import Thread
import numpy as np, pytest, tifffile
from conftest import ENV, SAMPLE, contents
from refocus_nbdev.io.images import open_image
from refocus_nbdev.refocus.fieldjobs import tables_folder
from refocus_nbdev.refocus.plan import *
from refocus_nbdev.refocus.frames import *
from refocus_nbdev.refocus.rows import *
from refocus_nbdev.refocus.plates import *
from refocus_nbdev.refocus.workers import *

MODEL = ['--model', 'nuclei-fast', '--device', 'cpu', '--shard', '1/1'] # A shard makes no pictures
FIELDS = 10

@pytest.fixture(scope='module')
def plate(tmp_path_factory):
    "Ten fields of three planes"
    folder = tmp_path_factory.mktemp('cluster')/'plate'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(FIELDS):
        x = rng.poisson(100+20*i, (3,64,64)).astype(np.uint16)
        tifffile.imwrite(folder/f'B{i//2+1:02d}_s{i%2+1}_w1.tif', x, imagej=True, metadata=dict(axes='ZYX'))
    return folder

SLOW = '''
def dask_setup(worker):
    import os, time
    from refocus_nbdev.refocus.engine import Refocuser
    usual = Refocuser.refocused_rows
    def slow(*args, **kwargs):
        if os.path.exists({!r}): time.sleep(0.3)
        return usual(*args, **kwargs)
    Refocuser.refocused_rows = slow
'''

def address_in(about):
    "The address in the file of a scheduler, once it is there"
    while not about.exists() or not about.read_text().endswith('}'): time.sleep(0.05)
    return json.loads(about.read_text())['address']

@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    "The address of a scheduler with two workers, its process, and a path: workers are slow while a file is there"
    pytest.importorskip('distributed')
    folder = tmp_path_factory.mktemp('dask')
    about = folder/'scheduler.json'
    (folder/'slow.py').write_text(SLOW.format(str(folder/'slow')))
    dask = [sys.executable, '-m', 'dask']
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env=ENV)
    here = ['--host', '127.0.0.1', '--no-dashboard', '--scheduler-file', about]
    scheduler = subprocess.Popen([*dask, 'scheduler', '--port', '0', *here], **quiet)
    options = ['--nworkers', '2', '--nthreads', '1', '--local-directory', folder, '--preload', folder/'slow.py']
    workers = subprocess.Popen([*dask, 'worker', *here, *options], **quiet)
    try: yield address_in(about), scheduler, folder/'slow'
    finally:
        for process in (workers, scheduler): process.terminate()
        for process in (workers, scheduler): process.wait(20)

def fields_in(out): return sorted(p.parent.relative_to(out) for p in out.glob('*/*/[0-9]*/zarr.json'))

def check_equal(out, whole):
    "Both plates hold the same fields with the same pixels, and nothing half written"
    fields,others = (fields_in(o) for o in (out,whole))
    assert fields==others and len(fields)==FIELDS
    for field in fields:
        with open_image(out/field) as a, open_image(whole/field) as b:
            assert all((a.read(p)==b.read(q)).all() for p,q in zip(a.planes, b.planes, strict=True))

@pytest.fixture(scope='module')
def whole(plate, in_process):
    "The results of this process, and its report"
    out = plate.parent/'whole.zarr'
    said = in_process('plate', plate, out, *MODEL)
    assert said.code==0
    return out, said.text

def begun(plate, out):
    "The jobs of a plate, and how a cluster does them; `change` gets each worker's `Refocuser`"
    from refocus_nbdev.refocus.engine import Refocuser
    jobs = plan_plate(plate, out)
    refocuser = Refocuser.load('nuclei-fast', 'cpu')
    start_plate(jobs, plate, out, refocuser)
    def run(scheduler, change, **options):
        def load():
            own = Refocuser.load('nuclei-fast', 'cpu')
            change(own)
            return own
        run_on_cluster(jobs, refocuser, scheduler, load, **options)
        return jobs
    return run

def statuses(jobs): return [j.status for j in jobs]

def test_the_same_as_in_one_process(plate, whole, cluster, in_process, tmp_path):
    out,text = whole
    said = in_process('plate', plate, tmp_path/'out.zarr', *MODEL, '--scheduler', cluster[0])
    assert said.code==0, said.text
    check_equal(tmp_path/'out.zarr', out)
    def plain(text, out): return re.sub(r'in [\d.]+ s.*?;', '', text).replace(str(out), '')
    assert plain(said.text.splitlines()[-1], tmp_path/'out.zarr')==plain(text.splitlines()[-1], out)
    def rows(out): return {p.name.rpartition('_')[0]: plain(p.read_text(), out) for p in tables_folder(out).rglob('*.json')}
    assert rows(tmp_path/'out.zarr')==rows(out)!={}

def in_trouble(folder):
    "A change of a `Refocuser`: while they write a field, one worker kills itself, and another hangs, once in all"
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def hang(): time.sleep(1000)
    def change(refocuser):
        usual,calls = refocuser.refocused_rows,[]
        def troubled(*args, **kwargs):
            calls.append(0)
            for trouble in (die, hang) if len(calls)==2 else ():
                try: (folder/trouble.__name__).touch(exist_ok=False)
                except FileExistsError: continue
                trouble()
            return usual(*args, **kwargs)
        refocuser.refocused_rows = troubled
    return change

def test_workers_that_die_and_hang(plate, whole, cluster, tmp_path):
    jobs = begun(plate, tmp_path/'out.zarr')(cluster[0], in_trouble(tmp_path), timeout_s=8)
    assert (tmp_path/'die').exists() and (tmp_path/'hang').exists()
    late = [j for j in jobs if j.status=='failed'] # A result that was lost with its worker is skipped the second time
    assert late and all(str(j.source) in j.note and 'took too long' in j.note for j in late)
    missing = [not j.target.exists() for j in jobs]
    assert any(missing)
    again = begun(plate, tmp_path/'out.zarr')(cluster[0], in_trouble(tmp_path))
    assert statuses(again)==['done' if o else 'skipped' for o in missing]
    check_equal(tmp_path/'out.zarr', whole[0])

def test_a_full_disk(plate, whole, cluster, tmp_path):
    def limited(refocuser):
        most = 2000 if not (tmp_path/'free').exists() else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    jobs = begun(plate, tmp_path/'out.zarr')(cluster[0], limited)
    assert statuses(jobs)==['failed']*FIELDS
    assert all('File too large' in j.note for j in jobs), jobs[0].note
    assert not any(j.target.exists() for j in jobs) and not list((tmp_path/'out.zarr').rglob('*.partial.*'))
    (tmp_path/'free').touch()
    assert statuses(begun(plate, tmp_path/'out.zarr')(cluster[0], limited))==['done']*FIELDS
    check_equal(tmp_path/'out.zarr', whole[0])

def shared(folder):
    "A change of a `Refocuser`: while a file is there, all fields are huge, and a worker kills itself while it computes a part of one, once in all"
    def change(refocuser):
        import refocus_nbdev.refocus.workers as workers
        workers._is_huge = lambda job, axes: (folder/'huge').exists()
        usual = refocuser.computed
        def troubled(*args, **kwargs):
            if (folder/'huge').exists() and not (folder/'died').exists():
                (folder/'died').touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*args, **kwargs)
        refocuser.computed = troubled
    return change

def test_huge_fields_are_shared(plate, whole, cluster, tmp_path):
    (tmp_path/'huge').touch()
    jobs = begun(plate, tmp_path/'out.zarr')(cluster[0], shared(tmp_path))
    (tmp_path/'huge').unlink()
    assert (tmp_path/'died').exists() and statuses(jobs)==['done']*FIELDS, jobs[0].note
    check_equal(tmp_path/'out.zarr', whole[0])

def test_tiles_of_an_image(cluster, in_process, tmp_path):
    "The same bytes as on this machine, whose tiles are as large"
    fields = [tifffile.imread(f) for f in sorted(SAMPLE.glob('BBBC006_v1_images_z_10/*'))[:15]]
    tifffile.imwrite(tmp_path/'large.tif', np.block([fields[i:i+5] for i in (0,5,10)]))
    for out,options in ('here', []), ('there', ['--scheduler', cluster[0]]):
        said = in_process('run', tmp_path/'large.tif', '--out', tmp_path/out, *MODEL[:4], '--tile', 1024, *options)
        assert said.code==0, said.text
    assert contents(tmp_path/'here')==contents(tmp_path/'there')

def kill_after_a_field(out, process):
    "Kill a process as soon as there is a field"
    while not fields_in(out): time.sleep(0.02)
    process.kill()

def test_a_scheduler_that_goes(plate, whole, cluster, in_process, tmp_path, capfd):
    address,scheduler,slow = cluster
    slow.touch()
    out = tmp_path/'out.zarr'
    Thread(target=kill_after_a_field, args=[out, scheduler], daemon=True).start()
    said = in_process('plate', plate, out, *MODEL, '--scheduler', address)
    ending = f'refocus plate: {address}: the scheduler is gone, or does not answer; what is done is kept: run it again to go on'
    assert said.code==1 and said.text.splitlines()[-1]==ending
    assert capfd.readouterr()==('', '') and len(fields_in(out))<FIELDS
    said = in_process('plate', plate, out, *MODEL)
    assert said.code==0 and ' 0 failed' in said.text and ' 0 done before' not in said.text
    check_equal(out, whole[0])

WAITING = """
import sys, time
from contextlib import closing
from refocus_nbdev.plates.cluster import on_cluster
def wait(state, item, check):
    while item:
        time.sleep(0.02)
        check()
def nothing(threads): return None
if __name__=='__main__':
    try:
        with on_cluster('local:2', nothing) as do, closing(do(wait, range(9))) as ended:
            for outcome in ended: print('begun', flush=True)
    except KeyboardInterrupt: print('interrupted')
"""

def test_ctrl_c(start, tmp_path): # `start` lets what begins here hear Ctrl-C
    "In a terminal, all processes get it, and only the first says something"
    pytest.importorskip('distributed')
    (tmp_path/'waiting.py').write_text(WAITING)
    run = subprocess.Popen([sys.executable, tmp_path/'waiting.py'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV, start_new_session=True)
    assert run.stdout.readline()=='begun\n'
    os.killpg(run.pid, signal.SIGINT)
    assert run.communicate(timeout=60)[0]=='interrupted\n' and run.returncode==0
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(run.pid, 0)
            time.sleep(0.05)

@pytest.mark.parametrize('scheduler, words', [('local:0', 'write local:4'), ('tcp://127.0.0.1:8786', "pip install 'refocus_nbdev[plates]'")])
def test_no_such_scheduler(plate, in_process, tmp_path, monkeypatch, scheduler, words):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    said = in_process('plate', plate, tmp_path/'out.zarr', '--scheduler', scheduler)
    assert said.code==2 and words in said.text and not list(tmp_path.iterdir())
