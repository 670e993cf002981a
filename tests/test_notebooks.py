"Every notebook runs from top to bottom in a Jupyter kernel: all of its cells, without a GPU, network or other folders"
import os, socket
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
CLOSED = 'http://127.0.0.1:9' # Where nobody listens: what asks for the network fails at once

@pytest.fixture
def alone(monkeypatch):
    "No images but those of the repository, and no network"
    monkeypatch.delenv('REFOCUS_DATA', raising=False)
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(name, CLOSED)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(alone, path):
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata':{'path':str(ROOT/'nbs')}}).execute()
