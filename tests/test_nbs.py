"Every notebook runs from top to bottom: its cells are its tests"
import json, os, sys
from multiprocessing import get_context, set_start_method
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

cfg = get_config()
server = get_context('forkserver') # it imports once what takes seconds, and each notebook begins as a copy of it
server.set_forkserver_preload(['fastai.vision.all', 'timm', 'nbdev.test', 'pandas', 'sklearn.metrics', 'matplotlib.pyplot'])

def run(nb, log):
    "Run the notebook `nb`, and write what it says to the file `log`"
    set_start_method('fork', force=True) # of loaders' workers, as in any process of Linux
    with open(log, 'w') as f:
        for o in (1,2): os.dup2(f.fileno(), o)
    ok,_ = run_nb(nb, skip_flags=cfg.tst_flags, basepath=cfg.config_path)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(not ok) # without waiting for workers that a failed cell left behind

@pytest.mark.parametrize('nb', nbglob(as_path=True), ids=lambda o: str(o.relative_to(cfg.nbs_path)))
def test_notebook(nb, tmp_path):
    "In a process of its own: a notebook defines what the other tests import, and would patch it away under them"
    log = tmp_path/'log'
    p = server.Process(target=run, args=(nb, log))
    p.start()
    p.join()
    assert p.exitcode==0, log.read_text()[-6000:]

@pytest.mark.parametrize('nb', sorted((cfg.nbs_path/'api').glob('*.ipynb')), ids=lambda o: o.stem)
def test_a_word_between_any_two_exported_cells(nb):
    "The imports apart, which come first"
    bare,said = [],True # was there a word, or an example, since the last exported cell?
    for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
        src = ''.join(c['source'])
        if not src.startswith('#|') or c['cell_type']=='markdown': said = True
        elif src.startswith('#| export') and not src.split('\n', 1)[1].startswith(('import ','from ')):
            if not said: bare.append(src.splitlines()[1])
            said = False
    assert not bare
