"Modules are what the notebooks export, notebooks are clean, README.md is what the front page says"
import json, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
skip = shutil.ignore_patterns('.venv', '.git', '_proc', '_docs', 'quickstart', '__pycache__', '*.egg-info', '.ipynb_checkpoints')

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the tree in which notebooks have been cleaned and exported"
    res = tmp_path_factory.mktemp('sync')/'fgvc_fast'
    shutil.copytree(root, res, ignore=skip)
    for cmd in ('nbdev-clean', 'nbdev-export'): subprocess.run([str(Path(sys.executable).parent/cmd)], cwd=res, check=True)
    return res

@pytest.mark.parametrize('folder,ext', [('fgvc_fast','.py'), ('nbs','.ipynb')])
def test_in_step(copy, folder, ext):
    def texts(top): return {str(f.relative_to(top)): f.read_text(encoding='utf-8') for f in sorted((top/folder).rglob(f'*{ext}')) if '.ipynb_checkpoints' not in f.parts}
    old,new = texts(root),texts(copy)
    differ = sorted(k for k in old.keys()|new.keys() if old.get(k)!=new.get(k))
    assert not differ, f'{differ} are out of step: run nbdev-export and nbdev-clean, and commit'

def test_no_machine_in_notebooks():
    "What libraries warn about, with the paths of whoever ran the notebook, is no output to show"
    for f in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in f.parts: assert 'site-packages' not in json.dumps([c.get('outputs') for c in json.loads(f.read_text(encoding='utf-8'))['cells']]), f'{f.name}: take the warnings out of its outputs'

def test_readme():
    sys.path.insert(0, str(root/'nbs'))
    from _readme import readme
    assert (root/'README.md').read_text(encoding='utf-8')==readme(), 'README.md is out of step: run `make readme`'
