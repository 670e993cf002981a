import os, re, shutil, subprocess, sys, zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from packaging.requirements import Requirement
from conftest import ROOT, SAMPLE, contents, tracked

FROM_THE_INDEX = {'refocus-nbdev', 'fastai', 'fastcore', 'fasttransform', 'fastprogress', 'fastdownload'}

def canonical(name): return name.lower().replace('_', '-')

def needed(name, seen):
    "The installed distributions that `name` needs to run, and those they need, by name"
    try: dist = distribution(name)
    except PackageNotFoundError: return seen
    for r in map(Requirement, dist.requires or []):
        if canonical(r.name) not in seen and (not r.marker or r.marker.evaluate({'extra':''})):
            seen.add(canonical(r.name))
            needed(r.name, seen)
    return seen

def borrow(names, folder):
    "Links in `folder` to all that these distributions installed"
    for name in names:
        try: dist = distribution(name)
        except PackageNotFoundError: continue
        for top in {f.parts[0] for f in dist.files or []} - {'..', '__pycache__'}:
            link,target = folder/top, Path(dist.locate_file(top)).resolve()
            if target.exists() and not link.exists(): link.symlink_to(target)

def call(*args, cwd):
    env = {k:v for k,v in os.environ.items() if not k.startswith('PYTHON')}
    return subprocess.run(list(map(str, args)), capture_output=True, text=True, cwd=cwd, env=env, timeout=600)

def said(*args, cwd):
    done = call(*args, cwd=cwd)
    assert done.returncode==0, done.stdout+done.stderr
    return done.stdout

@pytest.fixture(scope='module')
def work(tmp_path_factory): return tmp_path_factory.mktemp('wheel')

@pytest.fixture(scope='module')
def index(work):
    "A package index that answers; without one, only CI insists"
    done = call(sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', work/'index', 'fastcore', cwd=work)
    if done.returncode and not os.environ.get('CI'): pytest.skip('no package index can be reached')
    assert done.returncode==0, done.stderr

@pytest.fixture(scope='module')
def wheel(work, index):
    for path in tracked():
        place = path.relative_to(ROOT)
        if place.parts[0] in ('data', 'nbs', 'tests'): continue
        (work/'source'/place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, work/'source'/place)
    said(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', work, work/'source', cwd=work)
    return next(work.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(work, wheel):
    """The bin folder of a new environment with the wheel and the newest fastai

    What else it needs at run time is linked from this environment, so that torch need not be fetched again; what only development needs is not.
    """
    said(sys.executable, '-m', 'venv', work/'env', cwd=work)
    (work/'borrowed').mkdir()
    borrow(needed('refocus_nbdev', set()) - FROM_THE_INDEX, work/'borrowed')
    next((work/'env').glob('lib/python*/site-packages')).joinpath('borrowed.pth').write_text(f'{work/"borrowed"}\n')
    (work/'keep.txt').write_text(''.join(f'{n}=={distribution(n).version}\n' for n in ('torch', 'torchvision')))
    said(work/'env'/'bin'/'pip', 'install', '-q', '-U', '-c', work/'keep.txt', wheel, 'fastai', 'fastcore', cwd=work)
    return work/'env'/'bin'

pytestmark = pytest.mark.skipif(os.name!='posix', reason='borrows torch by symbolic links')

def test_the_models_are_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    models = {f.name for f in (ROOT/'refocus_nbdev'/'models').glob('*.safetensors')}
    assert {n.rpartition('/')[2] for n in names if n.endswith('.safetensors')}==models and len(models)==3
    assert any(n.endswith('/LICENSE') for n in names)
    assert {n.split('/')[0].split('-')[0] for n in names}=={'refocus_nbdev'}

def test_pypi_can_show_the_wheel(wheel):
    assert wheel.stat().st_size<100e6
    with zipfile.ZipFile(wheel) as z: about = z.read(next(n for n in z.namelist() if n.endswith('/METADATA'))).decode()
    links = re.findall(r'\]\(([^)]*)', about)
    assert len(links)>20 and not [o for o in links if not o.startswith(('https://', '#'))]

def test_fastai_is_the_newest(installed, work):
    assert 'Would install' not in said(installed/'pip', 'install', '--dry-run', '--no-deps', '-U', 'fastai', 'fastcore', cwd=work)
    where = said(installed/'python', '-c', 'import fastai, fastcore; print(fastai.__file__, fastcore.__file__)', cwd=work)
    assert all(Path(p).is_relative_to(work/'env') for p in where.split())

def test_development_tools_are_absent(installed, work):
    assert call(installed/'python', '-c', 'import nbdev', cwd=work).returncode
    assert call(installed/'python', '-c', 'import pytest', cwd=work).returncode

def test_requirements_are_met(installed, work): said(installed/'pip', 'check', cwd=work)

def test_every_module_can_be_imported(installed, work):
    code = 'import pkgutil, importlib, refocus_nbdev as r; print(*[importlib.import_module(m.name).__file__ for m in pkgutil.walk_packages(r.__path__, "refocus_nbdev.")])'
    files = said(installed/'python', '-c', code, cwd=work).split()
    assert len(files)>40 and all(Path(p).is_relative_to(work/'env') for p in files)

def test_help(installed, work): assert 'demo' in said(installed/'refocus', '--help', cwd=work)

def test_run(installed, work):
    source = sorted(SAMPLE.glob('BBBC006_v1_images_z_05/*.tif'))[0]
    assert '1 done' in said(installed/'refocus', 'run', source, '--out', work/'out', cwd=work)
    assert contents(work/'out').keys()=={source.name}

def test_demo_makes_its_plate_first(installed, work):
    text = said(installed/'refocus', 'demo', cwd=work)
    made = contents(work/'refocus-demo')
    assert 'making the simulated sample plate' in text and 'demo.png' in made
    assert len([n for n in made if n.startswith('z_')])==4*16
    to_try = [line.split()[1:] for line in text.split('to try:\n')[1].splitlines()]
    assert [args[0] for args in to_try]==['score', 'trust', 'evaluate']
    for args in to_try: said(installed/'refocus', *args, '--dry-run', cwd=work)

def test_the_plate_it_makes_is_the_one_in_the_repository(installed, work):
    made,ours = ({p.relative_to(d).as_posix(): np.asarray(Image.open(p)).astype(int) for p in sorted(d.rglob('*.*')) if p.suffix!='.md'} for d in (work/'refocus-demo'/'sample', SAMPLE))
    assert made.keys()==ours.keys()
    assert not [n for n in ours if np.abs(made[n]-ours[n]).max()>n.endswith('.tif')]

def test_train(installed, work):
    plate = work/'plate'
    for z in (5, 10, 16):
        name = f'BBBC006_v1_images_z_{z:02d}'
        shutil.copytree(SAMPLE/name, plate/name, ignore=lambda d,names: [n for n in names if not ('_a05_' in n or '_c12_' in n)])
    assert 'use it with' in said(installed/'refocus', 'train', plate, '--out', work/'m.safetensors', '--epochs', 1, cwd=work)
    source = next(plate.glob('*_z_10/*.tif'))
    said(installed/'refocus', 'run', source, '--model', work/'m.safetensors', '--out', work/'out2', cwd=work)
