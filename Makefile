# Thin: every target works alone on a fresh clone, and CI (.ci/run) calls the same words.

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
READY := .venv/.ready
RUN ?= runs/digits-int8

.DEFAULT_GOAL := help
.PHONY: help demo demo-qat test slow check bench size clean

help:                       ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST)

# torch's CPU build (200 MB, not gigabytes) has an index of its own: used where it answers.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	index=; ! $(PYTHON) -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
	    $(TORCH_INDEX)/torch/ 2>/dev/null || index='--extra-index-url $(TORCH_INDEX)'; \
	$(BIN)/python -m pip install -q -c constraints.txt $$index torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

recipes/digits/data: | $(READY)
	$(BIN)/python recipes/digits/prepare.py

demo: $(READY) recipes/digits/data  ## quantize the digits network, print the table
	$(BIN)/qtool ptq --recipe recipes/digits/int8.yaml --out $(RUN)
	@echo "HTML report: $(abspath $(RUN))/report.html"

demo-qat: $(READY) recipes/digits/data  ## train the digits network at 2-bit weights, print the table
	$(BIN)/qtool qat --recipe recipes/digits/qat_w2a4.yaml --epochs 5 --out runs/digits-w2a4
	@echo "HTML report: $(abspath runs/digits-w2a4)/report.html"

test: $(READY)              ## the fast tests (about five minutes on two cores)
	$(BIN)/python -m pytest

slow: $(READY)              ## the tests that take minutes
	QTOOL_HYPOTHESIS=explore $(BIN)/python -m pytest -m slow

check: $(READY)             ## formatting, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 0 tests/architecture

bench: $(READY)             ## the tables of benchmarks/; needs QTOOL_DATA, a folder of networks and data
	@test -d "$$QTOOL_DATA" || { \
	    echo 'bench: set QTOOL_DATA to the folder of networks and data sets (see benchmarks/)' >&2; \
	    exit 2; }
	@set -e; for script in $$(grep -l '__main__' benchmarks/*.py | sed 's,/,.,; s,.py$$,,'); do \
	    echo "== $$script"; $(BIN)/python -m "$$script"; done

size:                       ## lines per file, longest functions
	@$(PYTHON) tests/architecture/source.py

clean:                      ## remove what runs and tests leave behind; the environment stays
	rm -rf runs build dist recipes/digits/data .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
