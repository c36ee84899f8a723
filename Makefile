# Two commands do everything: `make serve` and `make test`.
# Needs only: Linux, Python 3.11 or newer with venv (Debian: apt install python3-venv), make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The HTTP address and the model; override as `make serve MODEL=qwen2.5-coder-0.5b-instruct PORT=9000`.
MODEL  ?=
HOST   ?= 127.0.0.1
PORT   ?= 8000

# Not quiet: the first time this fetches hundreds of megabytes, and pip shows how far it is.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help serve chat test lint types imports check clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

serve: $(VENV)/.runtime  ## set up, fetch the default model, serve it on 127.0.0.1:8000
	@exec $(BIN)/dropless serve $(MODEL) --host $(HOST) --port $(PORT)

chat: $(VENV)/.runtime  ## set up and chat with the default model in this terminal
	@exec $(BIN)/dropless chat $(MODEL)

test: $(VENV)/.test  ## set up and run the tests
	@$(BIN)/dropless pull
	@$(BIN)/dropless pull all-minilm-l6-v2
	@$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev  ## ruff: lint and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy --strict
	@$(BIN)/mypy

imports: $(VENV)/.dev  ## import-linter: imports run downward
	@$(BIN)/lint-imports

check: lint types imports test  ## everything CI runs

clean:  ## remove the environment (downloaded models stay in the cache)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Dropless needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Creating the environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is missing. On Debian or Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Dropless and what it needs (once; a few minutes on a slow line) ..."
	@$(INSTALL) --quiet --upgrade pip setuptools
	@$(INSTALL) --editable '.[guardrails,tables]'
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "Installing lint and type checkers ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@
