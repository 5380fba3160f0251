# make demo   set-up, then convert, prune, verify and measure a model that ships in models/
# make test   set-up, then lint, types and the tests that need no GPU and little time
# make docs   the documentation as a site in site/
# make dist   sdist and wheel in dist/, the same bytes from the same commit
#
# Everything lives in .venv; versions are those of constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.tools
DEMO   := build/demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A process that finds no byte code compiles Secateur anew, half a second each time; containers like to forbid keeping it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow lint types format docs dist clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Secateur needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[torch,images,tensorrt-rtx,test,lint]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true  # as pip does, but on all processors; some files are for other Pythons
	@touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,package]'
	@touch $@

demo: $(READY)
	@mkdir -p $(DEMO)
	@sh models/demo.sh $(BIN) $(DEMO)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow and not gpu and not timing"
	$(BIN)/python -m pytest -q -m "timing and not slow and not gpu" $$(grep -rl --include='test_*.py' 'mark\.timing' tests)

test-slow: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest -m "slow and not gpu"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TOOLS)
	$(BIN)/python docs/operators.py
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/theme/mkdocs.yml --site-dir $(CURDIR)/site
	@echo "open site/index.html"

dist: $(TOOLS)
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf $(VENV) build dist site *.egg-info
