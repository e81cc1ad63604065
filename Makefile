# One environment, .venv, grows as targets ask for it: the core, [dev], [bench], [docs].
# A stamp file in it says how far; it is brought up to date when the pins or pyproject.toml change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
DOCS := $(VENV)/.docs
PINS := pyproject.toml setup.py constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Compiling all of torch and transformers would take longer than the demo. Python compiles what is
# used, once, if it may keep the result.
unexport PYTHONDONTWRITEBYTECODE
USED := import matplotlib.pyplot, pandas, pyarrow.parquet, scipy.stats, seaborn, torch, typer; \
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-kill test-mutate lint bench types docs clean

help:
	@echo 'make setup     the environment of the library, in $(VENV)'
	@echo 'make demo      a base, a fine-tune and their drop study from nothing; no network but pip'
	@echo 'make test      the tests that take seconds'
	@echo 'make test-all  every test that needs no accelerator'
	@echo 'make test-mutate  damaged files by the thousand, under an hour; part of test-all'
	@echo 'make test-kill    every command that writes, killed 200 times, under an hour; part of test-all'
	@echo 'make lint      ruff, its formatter and the types'
	@echo 'make types     mypy on a freshly installed tree'
	@echo 'make bench     timings beside our peers, one JSON line each'
	@echo 'make docs      the documentation, in build/site; open build/site/index.html'
	@echo 'make clean     remove all that make has made, $(VENV) too'
	@echo 'PYTHON=...     the Python (3.11 or newer) that makes the environment; now $(PYTHON)'

setup: $(CORE)

demo: $(CORE)
	$(BIN)/deltalens demo

# A process for each core, one thread each: torch's threads, where several processes have them, wait
# for each other at every operation.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m 'not slow and not gpu and not bench and not kill and not mutate'

test-all: $(DEV)
	$(BIN)/pytest -m 'not gpu'

# 25,000 damaged files; one alone: python -m tests.support.mutate --only NUMBER.
test-mutate: $(DEV)
	$(BIN)/pytest -m mutate tests/io

# Every command that writes, killed at 200 moments and given again.
test-kill: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m kill tests/cli

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

# Started in the root, mypy would skip cli/ and figures/: it reads what a user gets instead.
# setuptools keeps deleted modules in build/ and in the egg-info, so both go first.
types: $(DEV)
	rm -rf build deltalens.egg-info
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	    --cache-dir ../../.mypy_cache -p deltalens

bench: $(BENCH)
	$(BIN)/python -m benchmarks

# Strict: a link that leads nowhere, or a page in no menu, ends it. With --quiet nothing would.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist deltalens.egg-info deltalens-demo
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "deltalens needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] \
	    + ". Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch goes first and alone, so that nothing else decides which build of it comes.
$(CORE): $(VENV)/.python $(PINS)
	@echo 'Installing torch, then the rest; together some minutes on first use.'
	$(INSTALL) --no-compile setuptools torch
	$(INSTALL) --no-compile --no-build-isolation --editable .
	$(BIN)/python -c '$(USED)'
	@touch $@

$(DEV): $(CORE)
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

$(BENCH): $(CORE)
	$(INSTALL) --no-build-isolation --editable '.[bench]'
	@touch $@

$(DOCS): $(CORE)
	$(INSTALL) --no-build-isolation --editable '.[docs]'
	@touch $@
