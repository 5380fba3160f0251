# make demo   set-up, then convert, prune, verify and measure a model that ships in models/
# make test   set-up, then lint, types and the tests that need no GPU and little time
#
# Everything lives in .venv; versions are those of constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   := build/demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint types format docs clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Secateur needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,images,tensorrt-rtx,test,lint]'
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m "not slow and not gpu and not timing"
	$(BIN)/python -m pytest -q -m "timing and not slow and not gpu"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/operators.py

clean:
	rm -rf $(VENV) build dist *.egg-info
