# make quickstart · make test · make types · make docs · make bench    (each sets up its own .venv first; a second time that is quick)
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready
# one thread for each of two test processes; glibc keeps freed memory instead of handing back and clearing large tensors at every step
QUICK  := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

.PHONY: quickstart test types docs bench readme

$(READY): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo 'Setting up .venv (PyTorch, fastai, timm and the tools: a few minutes, once) ...'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

quickstart: $(READY)
	$(BIN)/python -W ignore -m fgvc_fast.quickstart

test: $(READY)
	$(BIN)/chkstyle
	$(QUICK) MPLBACKEND=agg $(BIN)/python -m pytest -q -rs -n 2 --dist worksteal --durations=8

# Every script prints its table, and of each goal whether it holds; one that falls short does not keep the others from running. Photographs are looked for in $FGVC_SHARED (../shared).
#   imports          importing fgvc_fast.all takes at most 1.15 × as long as fastai.vision.all
#   step             a training step takes at most 1.05 × as long as a hand-written loop
#   pools            second-order pools are no slower than the obvious way, and take half its memory on large maps
#   loading          files to batches: later epochs 10 × fastai's presizing and 3 × the best of the others, the first no slower than that
#   scale            three million rows: a table in a minute, loaders in ten seconds, nothing copied by the workers
#   errors           50,000 pictures of 1,000 classes: confusions counted within a second and 100 MB
#   cam              the maps of pytorch-grad-cam, twice as many a second
#   predict          a bundle starts in at most 2 × `import timm`, and predicts 0.9 × as fast as the faster of two loops with timm
#   duplicates       12,000 photographs are searched in under 120 s
#   toy_birds        as hard as they should be: raw pixels under 30 %, fine-tuned 85 %, shown the part 97 %
#   plans            the default plan of phases is the best, or as near as can be told
#   mixing           what each augmentation adds to a step: a table without a goal
#   cached_features  training the head on features of one pass is 10 × as fast, and within 1 point
#   solved_head      a head solved for on features is nowhere more than 0.5 points below scikit-learn's logistic regression
#   minutes          cub50 in the time of fastai's fine_tune(4): fit_minutes reaches 80 %, in an eighth of it 75 %, and is no worse than fit_phases and scikit-learn
#   cub50            8 points above fastai's own learner after as many epochs, in less time
BENCH := imports step pools loading scale errors cam predict duplicates toy_birds plans mixing cached_features solved_head minutes cub50

# Not among them: experiments that a default or a page was chosen by, to be run by hand when it is in doubt
#   added_losses     compares losses by validation, no goal
#   annotated_parts  compares shares of marked parts, no goal
#   budget           what a fixed time is best spent on: long, no goal
#   cache_accuracy   the cache costs no accuracy: long, as only several seeds can show it
#   curve            accuracy against minutes, for the front page: an hour for each seed, goes on from its log
#   deeper           what training the body adds to a solved head, and at which rate: no goal
#   looks            what closer looks of a frozen body are worth: no goal
#   few_shot         prototypes beside imprinted rows, no goal
#   heads            every pool and head under one time budget: hours, goes on from its log
#   pieces           what each of our defaults brings: long, no goal
#   studies          the published studies in small: asks which one

bench: $(READY)
	@for b in $(BENCH); do echo "== benchmarks/$$b.py"; $(BIN)/python benchmarks/$$b.py || short="$$short $$b"; done; test -z "$$short" || { echo "Fell short, or did not run:$$short"; exit 1; }

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python nbs/_docs.py

readme: $(READY)
	$(BIN)/python nbs/_readme.py
