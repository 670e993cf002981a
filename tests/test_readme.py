import base64, shutil
import nbformat, pytest, readme
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = b'\x89PNG not really'

def picture(): return new_output('display_data', data={'image/png':base64.b64encode(PNG).decode(), 'text/plain':'<Figure>'})

@pytest.fixture
def root(tmp_path):
    cells = [
        new_markdown_cell('# Title\n\n![a](figures/a.png) [map](27_plates.simulate.ipynb) [licence](../LICENSE) [out](https://example.org/x) [here](#title)'),
        new_code_cell('#| hide\nsecret = 1', outputs=[new_output('stream', text='hidden\n')]),
        new_code_cell('#| eval: false\n1+1', outputs=[new_output('execute_result', data={'text/plain':'2'})]),
        new_code_cell('#| echo: false\ndraw()', id='before-after', outputs=[picture(), picture()])]
    (tmp_path/'nbs').mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path/'nbs'/'index.ipynb')
    return tmp_path

def text(root): return readme.render(root/'nbs'/'index.ipynb')[0]

def test_code_and_its_output_are_shown(root): assert '```python\n1+1\n```\n\n    2\n' in text(root)

def test_hidden_cells_are_not(root):
    for word in ('secret', 'hidden', 'draw()', '#|', '<Figure>'): assert word not in text(root)

def test_links_work_from_the_root(root):
    assert '(nbs/figures/a.png) [map](nbs/27_plates.simulate.ipynb) [licence](LICENSE) [out](https://example.org/x) [here](#title)' in text(root)

def test_pictures_are_files_named_after_their_cell(root):
    figures = readme.render(root/'nbs'/'index.ipynb')[1]
    assert figures == {'nbs/figures/before-after.png':PNG, 'nbs/figures/before-after-2.png':PNG}
    assert '![before after](nbs/figures/before-after.png)' in text(root)

def test_writing_twice_changes_nothing(root):
    assert 'README.md' in readme.main(check=True, root=root)
    readme.main(check=False, root=root)
    assert readme.stale(root)=={} and readme.main(check=True, root=root)==0

def test_a_lost_picture_is_noticed(root):
    readme.main(check=False, root=root)
    shutil.rmtree(root/'nbs'/'figures')
    assert 'before-after.png' in readme.main(check=True, root=root)

def tables_in(cell):
    found = [o['data'].get('text/html', o['data'].get('text/markdown', '')) for o in cell.outputs if 'data' in o]
    return [''.join(text) for text in found if text]

TABLES = {'index.ipynb':{'trust-table'}, '90_benchmarks.ipynb':{'peers-table', 'scores', 'real-table'}}

def is_table(cell): return cell.cell_type=='code' and bool(tables_in(cell))

@pytest.mark.parametrize('notebook', TABLES)
def test_its_tables_are_of_the_rows_that_are_kept(notebook, monkeypatch):
    monkeypatch.chdir(readme.ROOT/'nbs')
    stored = read_nb(notebook).cells
    tables = [c.id for c in stored if is_table(c)]
    assert TABLES[notebook] <= set(tables)
    last = max(i for i,c in enumerate(stored) if c.id in TABLES[notebook])
    again,shell = read_nb(notebook).cells[:last+1],CaptureShell(notebook)
    for c in again:
        if c.cell_type=='code': shell.cell(c)
    for a,b in zip(stored, again):
        if a.id in tables: assert tables_in(a)[0]==tables_in(b)[0], f'{a.id} of {notebook}: run it again'
