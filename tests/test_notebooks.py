"Every notebook runs from top to bottom in a Jupyter kernel, without a GPU, network or other folders"
import re
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
LONG = '44_learn.losses', # Their slow cells train networks for many minutes: these run without them
CLOSED = 'http://127.0.0.1:9' # Where nobody listens: what asks for the network fails at once

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
    if path.stem in LONG: nb.cells = [c for c in nb.cells if not re.match(r'#\s*\|\s*slow', c.source)]
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata':{'path':str(ROOT/'nbs')}}).execute()
