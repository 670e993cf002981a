"""Measure how this package is written, and how others are: `python tests/measure_style.py [package ...]`

Syntax nodes are all `ast` nodes, load and store contexts too, of a function's body without its docstring. Signature and
decorators are not counted, and a nested function counts within its parent and once more by itself. Nodes a statement
are the nodes of all those bodies over their statements, so code outside functions is not counted. Lines are those of
the modules that are not blank, without what nbdev writes itself: `# %%` marks of cells, lists of names (`__all__`) and
`_modidx.py`.

A definition is a public function, class or patched method at the top of an exported cell. It is shown where the next
code cell of its notebook that is not exported reads its name, whether or not exported cells lie between; a patched
method has to be read as an attribute, any other definition as a plain name.
"""
import argparse, ast, importlib.util, json, re, statistics
from collections import namedtuple
from functools import cache
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'refocus_nbdev'
WINGS = ('io', 'optics', 'plates', 'learn', 'refocus', 'judge', 'cli')
ORDER = (*WINGS, 'all')
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LONG, LONGER, LARGE = 120, 140, 250

Line = namedtuple('Line', 'path number length')
Function = namedtuple('Function', 'path line name nodes statements')
Definition = namedtuple('Definition', 'notebook name shown')
Cell = namedtuple('Cell', 'exported tree')

# Modules

def folder(package=PACKAGE):
    "Where the package lies: ours in this repository, any other where it is installed"
    if package==PACKAGE: return ROOT/PACKAGE
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations: raise SystemExit(f'No package {package} is installed')
    return Path(spec.submodule_search_locations[0])

@cache
def modules(package=PACKAGE):
    "The text of each module of a package, by its path in the package"
    home = folder(package)
    paths = [p for p in sorted(home.rglob('*.py')) if p.name!='_modidx.py']
    return {p.relative_to(home):p.read_text(encoding='utf-8') for p in paths}

@cache
def trees(package=PACKAGE):
    "The syntax tree of each module of a package, by its path in the package"
    return {path:ast.parse(text) for path,text in modules(package).items()}

# Lines

def without_names(text):
    "A module's text with blank lines in place of the list of its names"
    return re.sub(r'^__all__ = \[.*?\]', lambda m: '\n'*m[0].count('\n'), text, flags=re.M|re.S)

@cache
def lines(package=PACKAGE):
    "All lines of a package that are neither blank nor written by nbdev"
    found = []
    for path,text in modules(package).items():
        numbered = enumerate(without_names(text).split('\n'), 1)
        found += [Line(path, i, len(l)) for i,l in numbered if l.strip() and not l.startswith('# %%')]
    return found

def lines_over(limit, package=PACKAGE):
    "Lines of more than `limit` characters"
    return [l for l in lines(package) if l.length>limit]

# Functions

def is_docstring(statement):
    "Is a statement nothing but a string?"
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, 'value', None), str)

def without_docstrings(tree):
    "A tree's nodes, without the docstrings of functions and classes in it"
    yield tree
    children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, DEFINITIONS) and is_docstring(tree.body[0]): children.remove(tree.body[0])
    for child in children: yield from without_docstrings(child)

def body_nodes(function):
    "All nodes of a function's body but its docstring"
    body = function.body[is_docstring(function.body[0]):]
    return [n for statement in body for n in without_docstrings(statement)]

def measured(path, function, name):
    "A function with the size of its body"
    nodes = body_nodes(function)
    return Function(path, function.lineno, name, len(nodes), sum(isinstance(n, ast.stmt) for n in nodes))

def named_functions(tree, prefix=''):
    "Every function below a tree, methods and nested ones too, with the names around it"
    for node in ast.iter_child_nodes(tree):
        inner = f'{prefix}{node.name}.' if isinstance(node, DEFINITIONS) else prefix
        if isinstance(node, FUNCTIONS): yield node,prefix+node.name
        yield from named_functions(node, inner)

@cache
def functions(package=PACKAGE):
    "All functions of a package, the largest first"
    found = [measured(path, f, name) for path,tree in trees(package).items() for f,name in named_functions(tree)]
    return sorted(found, key=lambda f: -f.nodes)

def functions_over(limit, package=PACKAGE):
    "Functions of more than `limit` syntax nodes, the largest first"
    return [f for f in functions(package) if f.nodes>limit]

def nodes_a_statement(package=PACKAGE):
    "Syntax nodes a statement, in the bodies of all functions"
    return sum(f.nodes for f in functions(package)) / max(1, sum(f.statements for f in functions(package)))

def nodes_a_function(package=PACKAGE):
    "Median, 90th percentile and maximum of the syntax nodes of a function"
    nodes = sorted(f.nodes for f in functions(package)) or [0]
    return statistics.median(nodes), nodes[int(.9*len(nodes))], nodes[-1]

# Definitions shown at work

def parsed(source):
    "A cell's syntax tree, without magics; empty where that isn't Python"
    try: return ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', source, flags=re.M))
    except SyntaxError: return ast.parse('')

def code_cells(notebook):
    "The code cells of a notebook"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    return [Cell(bool(re.search(r'^#\s*\|\s*export', s, re.M)), parsed(s)) for s in sources]

def names_read(tree):
    "Plain names that a cell reads"
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}

def attributes_read(tree):
    "Attributes that a cell reads"
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}

def is_patched(definition):
    "Is a definition a method patched into a class?"
    return any(re.match(r'patch(_to)?\b', ast.unparse(d)) for d in definition.decorator_list)

def public_definitions(tree):
    "Functions and classes at the top of a cell whose names have no underscore in front"
    return [d for d in tree.body if isinstance(d, DEFINITIONS) and not d.name.startswith('_')]

def is_shown_in(definition, tree):
    "Does a cell read a definition's name?"
    read = attributes_read if is_patched(definition) else names_read
    return definition.name in read(tree)

def shown_in(notebook):
    "The public definitions of a notebook, and whether each is shown"
    found, following = [], ast.parse('')
    for cell in reversed(code_cells(notebook)):
        if not cell.exported: following = cell.tree
        here = public_definitions(cell.tree) if cell.exported else []
        found += [Definition(notebook.stem, d.name, is_shown_in(d, following)) for d in reversed(here)]
    return found[::-1]

@cache
def shown():
    "All public definitions of our notebooks, and whether each is shown"
    return [d for notebook in sorted((ROOT/'nbs').glob('*.ipynb')) for d in shown_in(notebook)]

def unshown():
    "Definitions that the next code cell does not show at work"
    return [d for d in shown() if not d.shown]

def shown_share():
    "Share of the definitions that are shown"
    return 1 - len(unshown())/max(1, len(shown()))

def readme_words():
    "Number of words in README.md"
    return len((ROOT/'README.md').read_text(encoding='utf-8').split())

# Wings

def wings():
    "The wings that the package has, the lowest first"
    return [w for w in WINGS if (ROOT/PACKAGE/w).is_dir()]

def wings_with_code():
    "Wings whose `__init__.py` holds anything but comments"
    return [w for w in wings() if trees()[Path(w)/'__init__.py'].body]

def from_targets(path, node):
    "The full names, in parts, that a `from` import in the module at `path` may bring in"
    around = (PACKAGE, *path.parent.parts)
    anchor = around[:len(around)+1-node.level] if node.level else ()
    module = tuple(node.module.split('.')) if node.module else ()
    return [(*anchor, *module, alias.name) for alias in node.names]

def targets(path, node):
    "The full names, in parts, that a statement imports"
    if isinstance(node, ast.ImportFrom): return from_targets(path, node)
    if isinstance(node, ast.Import): return [tuple(alias.name.split('.')) for alias in node.names]
    return []

def wings_imported(path, node):
    "Wings of ours that a statement imports from, `all` among them"
    return {t[1] for t in targets(path, node) if t[0]==PACKAGE and t[1:2] and t[1] in ORDER}

def violations_in(path, tree):
    "The imports of a module that lead from its wing to a higher one"
    if path.parts[0] not in wings(): return
    place = ORDER.index(path.parts[0])
    for node in ast.walk(tree):
        higher = sorted(w for w in wings_imported(path, node) if ORDER.index(w)>place)
        yield from [f'{path}:{node.lineno} imports {w}' for w in higher]

def wing_violations():
    "Imports from a lower wing to a higher one"
    return [v for path,tree in trees().items() for v in violations_in(path, tree)]

# Report

def counted(limit, package):
    "Number and share of the lines over a limit, in words"
    over, total = len(lines_over(limit, package)), max(1, len(lines(package)))
    return f'{over} ({over/total:.1%})'

def column(package):
    "A package's figures, by what they measure"
    median, high, most = nodes_a_function(package)
    return {
        'syntax nodes a statement': f'{nodes_a_statement(package):.1f}',
        'nodes a function, median': f'{median:.0f}',
        'nodes a function, 90th percentile': f'{high}',
        'nodes a function, maximum': f'{most}',
        f'functions over {LARGE} nodes': f'{len(functions_over(LARGE, package))} of {len(functions(package))}',
        f'lines over {LONG} characters': counted(LONG, package),
        f'lines over {LONGER} characters': counted(LONGER, package)}

def own_column():
    "Our figures, with those that only our repository has"
    number = len(shown())
    return column(PACKAGE) | {
        'definitions shown at work': f'{number-len(unshown())} of {number} ({shown_share():.1%})',
        'words in README.md': f'{readme_words()}'}

def print_table(packages):
    "Print the figures of ours and of other packages side by side"
    columns = [own_column(), *map(column, packages)]
    print(' '*36 + ''.join(f'{p:>20}' for p in (PACKAGE, *packages)))
    for row in columns[0]: print(f'{row:36}' + ''.join(f'{c.get(row, "-"):>20}' for c in columns))

def described(function):
    "A function's place, name and size in words"
    return f'{function.path}:{function.line} {function.name} {function.nodes}'

def print_list(title, items):
    "Print a title and the items below it"
    print(f'\n{title}')
    for item in items: print(f'  {item}')

def print_wings():
    "Print the imports between wings that lead upwards"
    if not wings(): return print('\nno wings')
    print_list('Imports from a lower wing to a higher one', wing_violations() or ['none'])

def print_work():
    "List the functions and lines that are too long"
    print_list(f'Functions over {LARGE} nodes', map(described, functions_over(LARGE)))
    long = [f'{l.path}:{l.number} {l.length}' for l in lines_over(LONG)]
    print_list(f'Lines over {LONG} characters', long)

def print_unshown():
    "List the definitions that are not shown, by notebook"
    for notebook,group in groupby(unshown(), lambda d: d.notebook):
        print_list(notebook, [d.name for d in group])

def arguments():
    "The command line's arguments"
    parser = argparse.ArgumentParser(description='Measure how this package is written, and how others are')
    parser.add_argument('packages', nargs='*', help='installed packages to measure too')
    parser.add_argument('--list', action='store_true', help=f'list functions over {LARGE} nodes, lines over {LONG}')
    parser.add_argument('--unshown', action='store_true', help='list the definitions that are not shown at work')
    return parser.parse_args()

def main():
    "Print the figures, and the lists asked for"
    args = arguments()
    print_table(args.packages)
    for package in (PACKAGE, *args.packages):
        print_list(f'Largest functions of {package}, in nodes', map(described, functions(package)[:5]))
    print_wings()
    if args.list: print_work()
    if args.unshown: print_unshown()

if __name__=='__main__': main()
