# `make demo` and `make test` set everything up from a bare clone; they need make and one of Python 3.10 to 3.13.
#
#   make test PYTHON=python3.12     choose the interpreter (used when .venv does not exist yet)
#   make test TORCH=2.11.0          choose the torch version, 2.11 to 2.14 (reinstalls when it changes)
#   make demo VENV=/tmp/venv        choose where the packages go

PYTHON ?= python3.11 python3.12 python3.13 python3.10 python3
# Pinned and installed first, so that no other package chooses torch's build. A build that is already in $(VENV), or that
# pip is configured to find, such as a CPU-only one, is taken; the public one for Linux brings the CUDA libraries along.
TORCH  ?= 2.13.0
VENV   ?= .venv
PROMPT ?= a red circle left of a blue square
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# A stamp per set of extras and torch version; every installation removes the others, so a stamp never lies.
DEMO_READY := $(VENV)/.ready-demo-torch-$(TORCH)
TEST_READY := $(VENV)/.ready-test-torch-$(TORCH)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types unit clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(DEMO_READY) ## draw one prompt dense and pruned, side by side, into demo.png
	$(BIN)/toprovar generate "$(PROMPT)" --compare --out demo.png

test: lint types unit ## ruff, mypy and pytest

lint: $(TEST_READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TEST_READY) ## rewrite the files to the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(TEST_READY) ## mypy
	$(BIN)/mypy

unit: $(TEST_READY) ## pytest; PYTEST_ARGS="-k name" passes arguments on
	$(BIN)/python -m pytest $(PYTEST_ARGS)

clean: ## remove the environment, caches and build outputs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo.png
	find toprovar_fx passes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ensurepip is asked for as well: Debian's python3 without python3-venv cannot make an environment.
$(BIN)/python:
	@for candidate in $(PYTHON); do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	        >/dev/null 2>&1; then \
	        echo "creating $(VENV) with $$($$candidate --version)"; \
	        exec $$candidate -m venv $(VENV); \
	    fi; \
	done; \
	echo "error: no usable Python among '$(PYTHON)': needed is 3.10 to 3.13 with venv, e.g. make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# A python newer than its stamp means nothing (it is a link to the system's), hence the order-only prerequisite.
$(DEMO_READY): pyproject.toml | $(BIN)/python
	rm -f $(VENV)/.ready-*
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(TEST_READY): pyproject.toml | $(BIN)/python
	rm -f $(VENV)/.ready-*
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@ $(DEMO_READY)
