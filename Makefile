# `make train` and `make test` work on a fresh machine with Python 3.11 or newer:
# each makes .venv when it is missing and installs what it needs. Hydra overrides go into ARGS:
#   make train ARGS="model=c2d_tiny seed=1"
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: train test test-quick test-lowest lint clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# While working, about a minute: all but what trains, starts processes or compiles, and of many cases a few.
test-quick: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

# By hand, some GB: the suite with the lowest versions that pyproject.toml allows, on the lowest Python if there is one.
test-lowest: PYTHON := $(shell command -v python3.11 || echo $(PYTHON))
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[test]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv .venv-lowest outputs multirun
