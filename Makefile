# make lab and make test are all that a fresh machine needs: Python 3.11 or newer, and make.

# JupyterLab's port, and `no` to leave the browser closed (on a server, say).
PORT ?= 8888
BROWSER ?= yes
# What pip installs first, where the environment has no torch yet.
TORCH ?= torch==2.13.0
# The Python that makes the environment; found by itself where not given.
PYTHON ?=
# Further arguments for pytest, such as ARGS="-k policies".
ARGS ?=

VENV := .venv
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup lab test lint notebooks assets-table results slides docs clean

help:
	@echo "make lab            open the course in JupyterLab (sets everything up the first time)"
	@echo "                      PORT=8888    the port to serve on"
	@echo "                      BROWSER=no   do not open a browser, only print the address"
	@echo "make test           run all tests that this machine can run, and say what it cannot"
	@echo "                      ARGS='-k policies'   further arguments for pytest"
	@echo "make setup          only make the environment in $(VENV)"
	@echo "                      TORCH='torch==2.13.0 --index-url ...'   another build of torch"
	@echo "                      PYTHON=python3.12    the Python to use (3.11 or newer)"
	@echo "make lint           check style (ruff) of code and notebooks"
	@echo "make notebooks      derive the student notebooks from notebooks/solutions and run all"
	@echo "make assets-table   bring the table in assets/README.md up to date"
	@echo "make results        write docs/RESULTS.md from the records in assets/runs"
	@echo "make slides         make a deck of each notebook in build/slides (fetches reveal.js by npm)"
	@echo "make docs           make the API reference in build/api"
	@echo "make clean          remove the environment and all caches; runs/ and data/ stay"

setup: $(READY)

# Nothing is installed, and no network is asked, while the stamp is newer than pyproject.toml.
$(READY): pyproject.toml
	@set -e; \
	if [ ! -x $(VENV)/bin/python ]; then \
	  found=; \
	  for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "sinkviz needs Python 3.11 or newer, and found none; install one, or name it:" >&2; \
	    echo "  make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make environments; on Debian: apt-get install python3-venv" >&2; \
	    exit 1; }; \
	fi
	@$(VENV)/bin/python -c 'import torch' 2>/dev/null || $(VENV)/bin/python -m pip install $(TORCH)
	$(VENV)/bin/python -m pip install -e '.[test]'
	@touch $@

lab: $(READY)
	$(VENV)/bin/sinkviz lab --port $(PORT) $(if $(filter no,$(BROWSER)),--no-browser)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .

notebooks: $(READY)
	$(VENV)/bin/python notebooks/build.py

assets-table: $(READY)
	$(VENV)/bin/python assets/make_table.py

results: $(READY)
	$(VENV)/bin/python -m sinkviz.experiments.results

# Fetched once; the decks need no network.
build/reveal/package:
	mkdir -p build/reveal && cd build/reveal && npm pack --silent reveal.js@6.0.2 && tar xzf reveal.js-*.tgz

slides: $(READY) build/reveal/package
	$(VENV)/bin/python notebooks/slides.py build/reveal/package/dist build/slides

docs: $(READY)
	$(VENV)/bin/python -m pip install --quiet --quiet -e '.[docs]'
	$(VENV)/bin/python -m pdoc --docformat google --output-directory build/api sinkviz \
	  $$($(VENV)/bin/python -c "import pkgutil, sinkviz; print(*(m.name for m in \
	  pkgutil.walk_packages(sinkviz.__path__, 'sinkviz.') if '__' not in m.name))")

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
