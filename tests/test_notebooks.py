"Notebooks with slow cells run from top to bottom in a Jupyter kernel, without a GPU, network or other folders; `nbdev_test` runs the others"
import re
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

LONG = '37_learn.losses', # Their slow cells train networks for many minutes, so that only `nbdev_test` runs them, without these cells
CLOSED = 'http://127.0.0.1:9' # Where nobody listens: what asks for the network fails at once

def has_slow_cells(path): return any(re.match(r'#\s*\|\s*slow', c.source) for c in nbformat.read(path, as_version=4).cells)

NOTEBOOKS = [p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if p.stem not in LONG and has_slow_cells(p)]

@pytest.fixture
def alone(monkeypatch):
    "No images but those of the repository, and no network"
    for name in ('REFOCUS_DATA', 'REFOCUS_WEIGHTS'): monkeypatch.delenv(name, raising=False)
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(name, CLOSED)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(alone, path):
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata':{'path':str(ROOT/'nbs')}}).execute()
