"Every notebook runs from top to bottom: its cells are its tests"
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

cfg = get_config()

@pytest.mark.parametrize('nb', nbglob(as_path=True), ids=lambda o: str(o.relative_to(cfg.nbs_path)))
def test_notebook(nb):
    ok,_ = run_nb(nb, skip_flags=cfg.tst_flags, basepath=cfg.config_path)
    assert ok
