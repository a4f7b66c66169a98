"Every notebook runs from top to bottom: its cells are its tests"
import subprocess, sys
from pathlib import Path
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

cfg = get_config()

@pytest.mark.parametrize('nb', nbglob(as_path=True), ids=lambda o: str(o.relative_to(cfg.nbs_path)))
def test_notebook(nb):
    "In a process of its own: a notebook defines what the other tests import, and would patch it away under them"
    cmd = [Path(sys.executable).parent/'nbdev-test', nb, '--n-workers', '0']
    res = subprocess.run(cmd, cwd=cfg.config_path, capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-6000:]
