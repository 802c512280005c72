# `make book` and `make test` set up whatever they need: Python 3.11 and a network's package
# registry (or a pip that knows a local one) are enough. `make help` lists the targets.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: help setup book test lint format notebooks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name a Python 3.11 or later: make PYTHON=python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test,dev]'
	touch $@

notebooks: $(READY)  ## execute every notebook with papermill, into book/notebooks/
	@mkdir -p book/notebooks
	@set -e; for notebook in $(NOTEBOOKS); do \
		echo "$$notebook"; \
		$(BIN)/papermill --no-progress-bar --log-level ERROR --start-timeout 300 $$notebook book/$$notebook; \
	done

book: notebooks  ## regenerate every figure and table, and build the book
	rm -rf book/_vendor && mkdir -p book/_vendor/notebooks
	cp $(NOTEBOOKS) book/_vendor/notebooks/
	$(BIN)/python -c "import shutil; shutil.copytree('results', 'book/_vendor/results', ignore=shutil.ignore_patterns('runs', '.partial'))"
	$(BIN)/python book/vendor_mathjax.py
	$(BIN)/jupyter-book build --all -W -n --keep-going book
	@echo "The book: book/_build/html/index.html"

test: $(READY)  ## run every test, and every notebook in the smoke profile
	$(BIN)/python -m pytest
	LNLSR_RESULTS=$$(mktemp -d) $(BIN)/python -m pytest --nbval-lax \
		--nbval-kernel-startup-timeout 300 --nbval-cell-timeout 900 $(NOTEBOOKS)

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend style, and strip the notebooks' outputs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout $(NOTEBOOKS)

clean:  ## remove what the other targets made, but for results/
	rm -rf $(VENV) book/_build book/notebooks book/_vendor *.egg-info build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
