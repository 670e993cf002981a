import ast, importlib, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import measure_style as style
import nbformat, pytest, readme
from conftest import ROOT, tracked

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
PACKAGE = ROOT/'refocus_nbdev'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if not p.name.startswith('_'))
notebook = pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
module = pytest.mark.parametrize('path', MODULES, ids=lambda p: f'{p.parent.name}.{p.stem}')

def code_cells(nb): return [c for c in nbformat.read(nb, as_version=4).cells if c.cell_type=='code']

def module_of(nb):
    found = re.search(r'^#\s*\|\s*default_exp ([\w.]+)', '\n'.join(c.source for c in code_cells(nb)), re.M)
    return found and found[1]

def imported(source):
    "Our modules that a cell imports"
    single = re.findall(r'(?:from|import)\s+refocus_nbdev\.([\w.]+)', source)
    several = re.findall(r'from\s+refocus_nbdev\s+import\s+([\w, ]+)', source)
    return single + [n.strip() for names in several for n in names.split(',')]

def order(nb): return int(re.match(r'\d+', nb.stem)[0]) if nb.stem[0].isdigit() else 99

@notebook
def test_imports_only_lower_numbers(nb):
    homes = {module_of(o):o for o in NOTEBOOKS if module_of(o)}
    used = {m for c in code_cells(nb) for m in imported(c.source)} & homes.keys() - {module_of(nb)}
    higher = {m for m in used if order(homes[m]) >= order(nb)}
    assert not higher

def test_library_is_in_sync(tmp_path):
    for name in ('nbs', 'refocus_nbdev'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '*.safetensors'))
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT/name, tmp_path)
    for p in (tmp_path/'refocus_nbdev').rglob('*.py'): p.unlink()
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=tmp_path, check=True, capture_output=True)
    exported,committed = ({p.relative_to(d).as_posix(): p.read_text() for p in d.rglob('*.py')} for d in (tmp_path/'refocus_nbdev', PACKAGE))
    assert exported.keys()==committed.keys()
    assert not [n for n in exported if exported[n]!=committed[n]]

def test_readme_is_in_sync(): assert not readme.stale().keys()

@notebook
def test_notebook_is_clean(nb):
    outputs = [o for c in code_cells(nb) for o in c.get('outputs', [])]
    assert not [o for o in outputs if o.output_type=='error' or o.get('name')=='stderr' or 'Traceback (most recent' in str(o)]
    assert not [c.id for c in code_cells(nb) if c.execution_count]

@notebook
def test_notebook_is_small(nb): assert nb.stat().st_size < 300_000

def test_no_file_is_large(): assert not [p for p in tracked() if p.stat().st_size > 20_000_000]

def test_no_path_of_the_machine_is_named():
    here = {str(Path.home()), str(ROOT), sys.prefix, tempfile.gettempdir()} - {'/', ''}
    machine = re.compile('|'.join([*map(re.escape, here), r'/(?:home|Users)/\w+', r'site-packages/']))
    words = lambda p: re.sub(r'"image/\w+": "[^"]*"', '', p.read_text(encoding='utf-8'))
    texts = [p for p in tracked() if p.suffix in ('.ipynb','.py','.md','.ini','.yaml','.csv') and p.parent!=ROOT/'tests']
    assert not [f'{p.name}: {m[0]}' for p in texts if (m := machine.search(words(p)))]

def name_of(path): return '.'.join(path.relative_to(ROOT).with_suffix('').parts)

def without_docstring(path):
    body = ast.parse(path.read_text(encoding='utf-8')).body
    return [d.name for d in body if isinstance(d, (ast.FunctionDef, ast.ClassDef)) and d.name[0]!='_' and not ast.get_docstring(d)]

@module
def test_what_is_public_has_a_docstring(path): assert without_docstring(path)==[]

@module
def test_needs_no_development_tools(path):
    names = [n for d in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) for n in
             ([a.name for a in d.names] if isinstance(d, ast.Import) else [d.module or ''] if isinstance(d, ast.ImportFrom) else [])]
    assert not {n.split('.')[0] for n in names} & {'nbdev', 'execnb', 'IPython', 'pytest', 'hypothesis'}

@module
def test_module_can_be_imported(path): assert importlib.import_module(name_of(path)).__doc__

@notebook
def test_exported_cells_are_short(nb):
    exported = [c for c in code_cells(nb) if re.search(r'^#\s*\|\s*exports?\b', c.source, re.M)]
    def lines(c): return [line for line in c.source.splitlines() if not re.match(r'\s+\w+ ?[:=,].*# ', line)] # Parameters are a list
    assert not [c.id for c in exported if len(lines(c)) > 40]

@notebook
def test_directives_open_their_cell(nb):
    "nbdev passes over a directive that stands below code"
    late = [c.id for c in code_cells(nb) if re.search(r'^[^#\s].*\n(?:.*\n)*?#\s*\|', c.source, re.M)]
    assert not late

def test_the_package_itself_imports_nothing():
    assert 'import' not in (ROOT/'refocus_nbdev'/'__init__.py').read_text()

def test_no_line_is_long(): assert not style.lines_over(120)

def test_no_function_is_large(): assert not style.functions_over(250)

def test_statements_are_small(): assert style.nodes_a_statement()<14

def test_most_definitions_are_shown_at_work(): assert style.shown_share()>=0.9

def test_the_readme_is_short(): assert style.readme_words()<=1500

def test_wings_import_in_one_direction(): assert not style.wing_violations()

def test_wings_start_empty(): assert not style.wings_with_code()

def prose(path):
    "The Markdown of a notebook, or of a page"
    if path.suffix!='.ipynb': return path.read_text(encoding='utf-8')
    return '\n'.join(c.source+'\n' for c in nbformat.read(path, as_version=4).cells if c.cell_type=='markdown')

def anchors(path):
    "The names by which links can point to the headings of a page, as GitHub and Jupyter make them"
    found = re.findall(r'^#+ (.*)$', prose(path), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in found}

def leads_nowhere(page, link):
    "Is there no such file, or no such heading in it?"
    name,_,heading = link.partition('#')
    path = (page.parent/name).resolve() if name else page
    return not path.exists() or bool(heading) and heading.lower() not in anchors(path)

@pytest.mark.parametrize('page', [*NOTEBOOKS, *(p for p in tracked() if p.suffix=='.md')], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [o for o in re.findall(r'\]\(([^)\s]+)\)', prose(page)) if not re.match(r'https?:|mailto:', o)]
    assert not [o for o in links if leads_nowhere(page, o)]
