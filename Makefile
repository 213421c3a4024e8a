# Every target sets itself up: a machine with Python 3.11 or newer and make is all it takes.
# `make PYTHON=/path/to/python` picks the interpreter; the first that works of $(PYTHONS) otherwise.

VENV    := .venv
BIN     := $(VENV)/bin
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3
# The same steps as the Dockerfile's: torch first, as the largest part, then the rest, all under the tested versions.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt

export MLFLOW_DISABLE_TELEMETRY := true
export GIT_PYTHON_REFRESH := quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo-installed  ## forecast the bundled sample from end to end, into demo/
	$(BIN)/tsde demo --out demo

# One thread per worker: two workers with torch's default thread pools would fight over the cores.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.dev-installed  ## ruff, mypy and pytest
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

lint: $(VENV)/.dev-installed  ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove build products, caches and demo/; keeps .venv and every tracking store
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tsde pipelines tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps make a second run start at once; a change of pyproject.toml or constraints.txt installs again.
$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing tsde into $(VENV) (some minutes the first time)"
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing tsde and its development tools into $(VENV) (some minutes the first time)"
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
	@touch $@

# ensurepip is asked for because Debian ships Python without it; a name can be on the path and still not run (pyenv).
$(VENV)/.python:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then touch $@; exit 0; fi; \
	for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module among: $(strip $(PYTHONS))." >&2; \
	echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
