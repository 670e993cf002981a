import os, signal, subprocess, sys
from pathlib import Path
from typing import NamedTuple
import numpy as np, pytest, tifffile

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT/'data'/'sample'
ENV = {**os.environ, 'PYTHONPATH':str(ROOT), 'COLUMNS':'200'}

class Said(NamedTuple):
    code: int
    text: str

def command(*args): return [sys.executable, '-m', 'refocus_nbdev.cli', *map(str, args)]

@pytest.fixture(scope='session')
def elsewhere(tmp_path_factory):
    "An empty working folder"
    return tmp_path_factory.mktemp('elsewhere')

@pytest.fixture(scope='session')
def process(elsewhere):
    "The command as a process, outside the repository; nothing it is given may end in a traceback"
    def run(*args):
        done = subprocess.run(command(*args), capture_output=True, text=True, cwd=elsewhere, env=ENV, timeout=300)
        assert 'Traceback' not in done.stderr, done.stderr
        return Said(done.returncode, done.stdout+done.stderr)
    return run

@pytest.fixture(scope='session')
def refocus(process): return process

@pytest.fixture(scope='session')
def in_process():
    "The command in this process, where what it needs is imported once"
    from typer.testing import CliRunner
    from refocus_nbdev.cli.__main__ import app
    def run(*args):
        r = CliRunner().invoke(app, list(map(str, args)))
        assert r.exception is None or isinstance(r.exception, SystemExit), r.exception
        return Said(r.exit_code, r.output)
    return run

@pytest.fixture
def start(elsewhere):
    "The command in the background, killed when the test is over; it hears Ctrl-C also where the tests, run in the background themselves, do not"
    running,before = [],signal.signal(signal.SIGINT, signal.default_int_handler)
    def begin(*args):
        running.append(subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=elsewhere, env=ENV))
        return running[-1]
    yield begin
    signal.signal(signal.SIGINT, before)
    for p in running:
        p.kill()
        p.communicate()

def corner(plane): return tifffile.imread(sorted(SAMPLE.glob(f'BBBC006_v1_images_z_{plane:02d}/*.tif'))[0])[:96,:128]

@pytest.fixture(scope='session')
def blurred():
    "A corner of a simulated field, 12 um out of focus"
    return corner(10)

@pytest.fixture(scope='session')
def sharp():
    "The same corner in focus"
    return corner(16)

@pytest.fixture
def folder(tmp_path, blurred):
    "A folder with two good images"
    src = tmp_path/'in'
    src.mkdir()
    for i in range(2): tifffile.imwrite(src/f'field{i}.tif', np.roll(blurred, 20*i, 1))
    return src

BIG_PLANES = 1, 2, 5, 6, *range(10, 24), 32
LATE_WELL,MOVED = 'i16',('g03', 1, 5)

def moved_by(path, dy, dx=0):
    "The file with its image moved"
    from refocus_nbdev.io.images import read_image, write_image
    im = read_image(path)
    im.pixels = np.roll(im.pixels, (dy, dx), (-2, -1))
    return write_image(path, im)

def make_big_plate(root, wells=('a05','c12','g03','m22','p14'), late=(LATE_WELL,), moved=MOVED, planes=BIG_PLANES, sites=(1,), shape=(160,160)):
    "A simulated plate through focus: the wells `late` are in focus at plane 19, and the image (well, site, plane) of `moved` lies 4 px too low"
    from refocus_nbdev.plates.simulate import make_plate
    from refocus_nbdev.plates.names import plane_files
    make_plate(root, wells, sites, planes, shape)
    make_plate(root, late, sites, planes, shape, focus_z=19)
    if moved: moved_by(plane_files(root, moved[2])[moved[:2]], 4)
    return Path(root)

@pytest.fixture(scope='session')
def big_plate(tmp_path_factory):
    "The plate of `make_big_plate`: six wells of a site each, planes 1, 2, 5, 6, 10 to 23 and 32; to be read, not written to"
    return make_big_plate(tmp_path_factory.mktemp('big')/'plate')

def contents(folder):
    "Every file below `folder` with its bytes"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def tracked():
    "The files of the repository: what else lies in its folder, such as an environment, is nobody's business"
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git repository')
    return [ROOT/p for p in listed.stdout.splitlines() if (ROOT/p).is_file()]
