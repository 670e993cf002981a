"""Render README.md from nbs/index.ipynb, with its pictures in nbs/figures

python tests/readme.py writes, python tests/readme.py --check only looks whether writing would change anything.
"""
import base64, posixpath, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r'^#[ \t]*\|[ \t]*(.*?)[ \t]*$', re.M)
RELATIVE_LINK = re.compile(r'''(\]\(|\b(?:src|href)=["'])(?!\w+:|#|/)([^)"'\s]+)''')

def directives(cell): return DIRECTIVE.findall(cell.source) if cell.cell_type=='code' else []

def seen_from_root(text):
    "Links that are relative to nbs/, made relative to the folder above"
    return RELATIVE_LINK.sub(lambda m: m[1] + posixpath.normpath('nbs/'+m[2]), text)

def picture(output):
    "Suffix and bytes of an output that is a picture, or None"
    for mime,suffix in (('image/png','.png'), ('image/jpeg','.jpg')):
        if mime in output.get('data', {}): return suffix,base64.b64decode(output.data[mime])

def shown(cell, figures):
    "A code cell without directives, its pictures moved to `figures` and linked"
    pictures = 0
    for o in cell.outputs:
        found = picture(o)
        if not found: continue
        pictures += 1
        name = cell.id + (f'-{pictures}' if pictures>1 else '') + found[0]
        figures[f'nbs/figures/{name}'] = found[1]
        o.data = {'text/markdown': f'![{re.sub("[-_]+", " ", cell.id)}](nbs/figures/{name})'}
    source = '' if 'echo: false' in directives(cell) else DIRECTIVE.sub('', cell.source).strip('\n')
    return nbformat.from_dict({**cell, 'source':source})

def tidy(text):
    text = re.sub(r'<style.*?</style>\s*', '', text, flags=re.S)
    text = re.sub(r'```python\s*```\n', '', text)
    return re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M)).strip() + '\n'

def render(notebook):
    "The README's text, and the bytes of each picture by its path"
    nb,figures,cells = nbformat.read(notebook, as_version=4),{},[]
    for c in nb.cells:
        if c.cell_type=='raw' or any(d.startswith(('hide','default_exp')) for d in directives(c)): continue
        if c.cell_type=='markdown': c.source = seen_from_root(c.source)
        cells.append(shown(c, figures) if c.cell_type=='code' else c)
    nb.cells,nb.metadata['language_info'] = cells,{'name':'python'}
    return tidy(MarkdownExporter().from_notebook_node(nb)[0]), figures

def stale(root=ROOT):
    "What is not as the notebook says, and how it should be: bytes by path"
    root = Path(root)
    text,figures = render(root/'nbs'/'index.ipynb')
    wanted = {'README.md':text.encode(), **figures}
    return {k:v for k,v in wanted.items() if not (root/k).is_file() or (root/k).read_bytes()!=v}

def main(check, root=ROOT):
    changes = stale(root)
    if check: return f'{", ".join(changes)}: not as nbs/index.ipynb says; run python tests/readme.py' if changes else 0
    for k,v in changes.items():
        path = Path(root)/k
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(v)

if __name__=='__main__': sys.exit(main('--check' in sys.argv[1:]))
