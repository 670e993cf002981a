"Many processes begin one plate at the same moment, and some of them are killed"
import multiprocessing, os, signal, sys
import pytest
from refocus_nbdev.io.hcs import init_plate, plate_fields

FIELDS = {f'{row}/{column}/{n}': 3 for row in 'AB' for column in range(1, 4) for n in (0, 1)}

def begin(source, out, version='0.4'): return init_plate(out, 'unused', FIELDS, 'refocus_nbdev 0', version, source)

def begin_together(go, source, out):
    while not go.exists(): pass
    begin(source, out)

def texts(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and '.partial' not in p.name}

@pytest.mark.skipif(sys.platform=='win32', reason='needs fork')
def test_processes_begin_one_plate(tmp_path):
    source = init_plate(tmp_path/'source.zarr', 'screen', FIELDS, 'refocus_nbdev 0', '0.4')
    whole = texts(begin(source, tmp_path/'whole.zarr'))
    fork = multiprocessing.get_context('fork')
    for killed in (0, 2):
        out,go = tmp_path/f'out{killed}.zarr',tmp_path/f'go{killed}'
        workers = [fork.Process(target=begin_together, args=(go, source, out)) for _ in range(4)]
        for w in workers: w.start()
        go.touch()
        while not out.exists() and any(w.is_alive() for w in workers): pass
        for w in workers[:killed]: os.kill(w.pid, signal.SIGKILL)
        for w in workers: w.join(30)
        assert [w.exitcode for w in workers[killed:]]==[0]*(4-killed)
        assert texts(out)==whole and plate_fields(out)==FIELDS

def test_a_plate_whose_beginning_was_killed(tmp_path):
    "Between the folder and its first file, nothing but a hidden file is there"
    out = tmp_path/'out.zarr'
    out.mkdir()
    (out/'.0123ab-1-0.partial.zarr.json').write_text('{')
    assert plate_fields(begin(None, out, '0.5'))==FIELDS
