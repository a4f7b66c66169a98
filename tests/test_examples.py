"The scripts that people copy from run as they stand, as a user would start them"
import os, subprocess, sys
from pathlib import Path
import pytest
from PIL import Image
from fgvc_fast.all import fine_grained_data, load_bundle

root = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder for each of four species of toy birds"
    to = tmp_path_factory.mktemp('photos')
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48)
    for i in data.items.index:
        (to/data.items.label[i]).mkdir(exist_ok=True)
        Image.open(data.path(i)).save(to/data.items.label[i]/f'{i}.png')
    return to

def run(script, *args, cwd):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'PYTHONPATH': str(root), 'PYTHONIOENCODING': 'utf-8'}
    res = subprocess.run([sys.executable, root/'examples'/script, *args], cwd=cwd, capture_output=True, text=True, encoding='utf-8', env=env, timeout=300)
    assert res.returncode==0, res.stderr[-3000:]
    return res.stdout

def test_own_folder(photos, tmp_path):
    out = run('own_folder.py', photos, '--arch', 'toy_resnet', '--size', '48', '--epochs', '2', '--to', 'birds', cwd=tmp_path)
    assert 'top1' in out and 'label_3' in out
    assert (tmp_path/'confused.png').exists()==('Empty DataFrame' not in out) # where nothing was confused there is nothing to draw
    assert sorted(load_bundle(tmp_path/'birds').labels)==sorted(o.name for o in photos.iterdir())

def test_every_example_has_a_test(): assert {o.name for o in (root/'examples').glob('*.py')}=={'own_folder.py'}
