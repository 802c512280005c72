# `make book` and `make test` set up whatever they need: a Python that fits and a network's package
# registry (or a pip that knows a local one) are enough. `make help` lists the targets.

# The newest of these that is here and fits pyproject.toml; or name one: make PYTHON=...
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3 python
comma := ,
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
ifndef PYTHON
PYTHON := $(firstword $(foreach name,$(PYTHONS),$(shell $(name) -c '$(FITS)' >/dev/null 2>&1 && echo $(name))))
endif
VENV := .venv
BIN := $(VENV)/bin
# A moved checkout has another stamp: what is installed there is the folder it came from.
READY := $(VENV)/.ready-$(shell pwd | cksum | cut -d ' ' -f 1)
# Tests are shared out to as many processes as there are cores, up to 8, of one thread each.
ONE_CORE_EACH := OMP_NUM_THREADS=1
SHARED_OUT := --numprocesses auto --maxprocesses 8
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# Two makes at once take turns.
LOCKED := $(MAKE) --no-print-directory
ifndef LNLSR_LOCKED
LOCKED := LNLSR_LOCKED=1 "$(PYTHON)" scripts/locked.py .make.lock $(LOCKED)
endif

.PHONY: help setup notebooks book test strict floors lint format release clean python
.PHONY: in-notebooks in-book in-test in-strict in-floors in-release

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

python:
	@"$(or $(PYTHON),false)" -c '$(FITS)' 2>/dev/null || { echo "make: needs Python 3.11 to 3.14 with venv$(if $(PYTHON),$(comma) and $(PYTHON) is not that); name one: make PYTHON=/path/to/python" >&2; exit 1; }

setup: python  ## make the virtual environment .venv with everything in it
	+@$(LOCKED) $(READY)

$(READY): pyproject.toml constraints.txt
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,cluster,book,test,dev]'
	touch $@

notebooks: python  ## execute every notebook, and write what the book computes from stored runs
	+@$(LOCKED) in-notebooks

in-notebooks: $(READY)
	$(BIN)/python book/build.py

book: python  ## regenerate every figure and table, and build the book
	+@$(LOCKED) in-book

in-book: in-notebooks
	$(BIN)/python -c "from jupyter_book.cli.main import main; main()" build --all -W -n --keep-going book
	@echo "The book: book/_build/html/index.html"

test: python  ## run every test, and every notebook in the smoke profile
	+@$(LOCKED) in-test

in-test: $(READY)
	$(ONE_CORE_EACH) $(BIN)/python -m pytest $(SHARED_OUT) --dist worksteal
	LNLSR_RESULTS=$$(mktemp -d) $(ONE_CORE_EACH) $(BIN)/python -m pytest $(SHARED_OUT) \
		--dist loadscope --nbval-lax \
		--nbval-kernel-startup-timeout 300 --nbval-cell-timeout 900 $(NOTEBOOKS)

strict: python  ## execute every notebook twice, and compare what it puts out
	+@$(LOCKED) in-strict

in-strict: $(READY)
	$(BIN)/python scripts/strict.py

floors: python  ## test losses, SR and noise beside the oldest PyTorch and NumPy allowed; Python 3.11 or 3.12
	+@$(LOCKED) in-floors

# What is tested needs PyTorch and NumPy alone; the tests' fixtures import the rest.
in-floors:
	rm -rf .floors
	"$(PYTHON)" -m venv .floors
	.floors/bin/python -m pip install --quiet 'torch==2.3.0' 'torchvision==0.18.0' 'numpy==2.0.0' \
		filelock hypothesis pandas pillow platformdirs pydantic pytest scikit-learn threadpoolctl tqdm .
	$(ONE_CORE_EACH) .floors/bin/python -m pytest tests/test_losses.py tests/test_regularization.py \
		tests/test_noise.py tests/test_checks.py

lint: setup  ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: setup  ## mend style, and strip the notebooks' outputs
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/python -m nbstripout --extra-keys metadata.language_info.version $(NOTEBOOKS)

release: python  ## build wheel and source archive into dist/, and check the wheel in a bare environment
	+@$(LOCKED) in-release

in-release: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	LNLSR_WHEEL=$$(ls dist/*.whl) $(BIN)/python -m pytest tests/test_release.py

clean:  ## remove what the other targets made, but for results/
	rm -rf $(VENV) .floors .make.lock book/_build book/notebooks book/_vendor book/_generated *.egg-info build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
