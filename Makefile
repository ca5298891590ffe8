# make demo: set up and run the main job.   make test: set up and run the tests that are not slow.   make test-all: all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEWEST ?= .venv-newest
AOT ?= .venv-aot
DOCS ?= .venv-docs
PEERS ?= .venv-peers

.PHONY: setup demo test test-all test-newest lint types docs figures bench aot clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxrec needs Python >= 3.11; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m experiments.quickstart --data ml-100k --split u1 --seed 0 --out results

# Each process begins with half of the files, in their order, so that no program is compiled by both.
PYTEST := -m pytest --quiet --numprocesses 2 --dist worksteal

test: setup
	$(BIN)/python $(PYTEST) -m 'not slow'

test-all: setup
	$(BIN)/python $(PYTEST)

# With the newest of everything that pyproject.toml allows, which needs a newer Python; constraints.txt is what CI runs.
test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python $(PYTEST)

$(NEWEST)/.ready: pyproject.toml
	@newer=$$(for v in 3.13 3.12; do for p in python$$v $(HOME)/.pyenv/versions/$$v.*/bin/python; do \
	    "$$p" -c 'import ensurepip' 2>/dev/null && echo "$$p" && exit; done; done); \
	  test -n "$$newer" || { echo "test-newest needs Python 3.12 or 3.13 (jax >= 0.11 does), and neither is installed."; exit 1; }; \
	  $$newer -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --editable '.[dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The site, in docs/_build/html. Strict: a broken link, a formula that cannot be set, a public name without a docstring fail.
docs: $(DOCS)/.ready
	$(DOCS)/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --fresh-env docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(DOCS)/.ready: pyproject.toml constraints.txt constraints-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-docs.txt --editable '.[docs]'
	@touch $@

# Runs the tutorials on real data, writes what they print below their code, and draws their figures again.
figures: setup
	$(BIN)/python docs/run_pages.py docs/tutorials/*.md
	rm -f docs/tutorials/*.jaxrec

# Beside the peers, which live in an environment of their own (1.5 GB): an hour and a half, or two, on 2 cores.
bench: setup $(PEERS)/.ready
	$(BIN)/python -m benchmarks.suite --peers $(PEERS)/bin/python --out results
	$(BIN)/python -m benchmarks.reports --peers $(PEERS)/bin/python --out results

$(PEERS)/.ready: pyproject.toml constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints-peers.txt --editable '.[peers]'
	@touch $@

# Compiled for TPUs and an H100, which need not be there: their compilers take 2 GB in an environment of their own.
aot: $(AOT)/.ready
	$(AOT)/bin/python -m benchmarks.aot

$(AOT)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'jax[tpu]' \
	  jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 nvidia-cuda-runtime-cu12
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(AOT) $(PEERS) $(DOCS) results build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
