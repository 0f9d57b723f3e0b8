# Thin: every target works alone on a fresh clone, and CI (.ci/run) calls the same words.

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
READY := .venv/.ready
RUN ?= runs/digits-int8

.DEFAULT_GOAL := help
.PHONY: help demo demo-qat test slow check fuzz soak matrix release bench size clean

help:                       ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST)

# torch's CPU build (200 MB, not gigabytes) has an index of its own: used where it answers.
INDEX = $(shell $(PYTHON) -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
    $(TORCH_INDEX)/torch/ 2>/dev/null && echo --extra-index-url $(TORCH_INDEX))

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt $(INDEX) torch
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

test: $(READY)              ## the fast tests (five to eight minutes on two cores)
	$(BIN)/python -m pytest

slow: $(READY)              ## the tests that take minutes
	QTOOL_HYPOTHESIS=explore $(BIN)/python -m pytest -m slow

check: $(READY)             ## formatting, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 0 tests/architecture

fuzz: $(READY)              ## ten minutes of damaged models, recipes and data; goes on where it ended
	QTOOL_HYPOTHESIS=explore $(BIN)/python -m pytest -n 2 tests/properties tests/hostile
	PYTHONPATH=tests $(BIN)/python -m fuzz.fuzz_inputs --count 1000000 --seconds 120
	PYTHONPATH=tests $(BIN)/python -m fuzz.fuzz_models --count 1000000 --seconds 300

soak: $(READY)              ## hours: 200000 recipes, 20000 models, 100 kills; goes on where it ended
	PYTHONPATH=tests $(BIN)/python -m fuzz.soak

# uv fetches the interpreters that are not here. Rows that passed with the same wheel stay.
matrix: $(READY)            ## the wheel and the demo on Python 3.11 to 3.14, lowest and highest versions
	rm -rf dist
	$(BIN)/python -m build --wheel
	test -x build/uv/bin/uv || $(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install -q uv
	build/uv/bin/python tests/matrix.py -- $(INDEX)

# The audit asks PyPI for known vulnerabilities; --strict: a package that it cannot ask for fails.
release: $(READY) recipes/digits/data  ## build, install the wheel afresh, run the demo from it, audit
	rm -rf dist build/release build/tools
	$(BIN)/python -m build
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install -q -c constraints.txt $(INDEX) dist/*.whl
	cp -r recipes/digits build/release
	cd build/release && env -u PYTHONPATH bin/qtool ptq --recipe digits/int8.yaml --out demo
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install -q pip-audit cyclonedx-bom
	build/tools/bin/cyclonedx-py environment -o dist/sbom.json build/release/bin/python
	build/release/bin/python -m pip freeze --exclude qtool | sed 's/+cpu//' > build/release.txt
	build/tools/bin/pip-audit --strict --no-deps --disable-pip -r build/release.txt

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
