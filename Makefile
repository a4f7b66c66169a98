# make quickstart · make test · make docs · make bench    (each sets up its own .venv first; a second time that is quick)
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready
# one thread for each of two test processes; glibc keeps freed memory instead of handing back and clearing large tensors at every step
QUICK  := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

.PHONY: quickstart test docs bench readme

$(READY): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo 'Setting up .venv (PyTorch, fastai, timm and the tools: a few minutes, once) ...'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/python -W ignore -m fgvc_fast.quickstart

test: $(READY)
	$(BIN)/chkstyle
	$(QUICK) MPLBACKEND=agg $(BIN)/python -m pytest -q -rs -n 2 --dist worksteal --durations=8

bench: $(READY)
	@for b in imports step pools loading scale errors cam predict duplicates toy_birds plans mixing cached_features cub50; do echo "== benchmarks/$$b.py"; $(BIN)/python benchmarks/$$b.py || exit 1; done

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python nbs/_docs.py

readme: $(READY)
	$(BIN)/python nbs/_readme.py
