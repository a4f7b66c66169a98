"Build README.md from index.ipynb: `python nbs/_readme.py`"
import json, re
from pathlib import Path

root = Path(__file__).parent.parent

def cell_md(c):
    "Markdown for one cell: prose as it is, code in a fence, nothing of what is hidden"
    src = ''.join(c['source'])
    if c['cell_type']=='markdown': return re.sub(r'\]\((images/)', r'](nbs/\1', src)
    if re.match(r'#\|\s*(hide|default_exp)', src): return ''
    return f"```python\n{re.sub(r'(?m)^#[|].*$', '', src).strip()}\n```"

def readme():
    "The text of README.md"
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(filter(None, map(cell_md, cells))) + '\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
