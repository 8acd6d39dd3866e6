# make demo    compare losses on photographs that ship with two of the dependencies
# make test    the whole test suite
# make docs    the documentation site, site/index.html; docs-serve shows it at http://127.0.0.1:8000
# make check   what pre-commit checks: format, lint, types
# make lock, audit, licences, sbom, dist: docs/supply.md
PYTHON ?= python3
VENV ?= .venv
SERVICE ?= pypi
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# --no-compile: half of the time, for what is imported once, if at all.
LOCKED := $(PIP) --require-hashes --no-deps --no-compile --only-binary :all:
# Files in wheels and sdists get this time; that of the last commit in a checkout.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1577836800)

.PHONY: demo test docs docs-serve check clean lock audit licences sbom dist

demo: $(VENV)/.demo
	$(BIN)/veridical compare --demo

test: $(VENV)/.test
	$(BIN)/python -m tests

# The variable is what mkdocs-material names against a notice of its own.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --quiet
	@echo "the site: site/index.html"

docs-serve: $(VENV)/.docs
	$(BIN)/mkdocs serve

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# UPGRADE=--upgrade for the newest versions.
lock: $(VENV)/.test
	$(BIN)/python requirements/lock.py $(UPGRADE)

# --strict: a version that the service does not know is a failure, not a pass.
audit: $(VENV)/.test
	cat requirements/lock.txt requirements/torch.txt > $(VENV)/audit.txt
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement $(VENV)/audit.txt --vulnerability-service $(SERVICE)
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements/docs.txt --vulnerability-service $(SERVICE)

licences: $(VENV)/.test
	$(BIN)/python requirements/licences.py

sbom: $(VENV)/.test
	$(BIN)/python requirements/sbom.py

dist: $(VENV)/.test
	$(BIN)/python -m hatchling build
	cd dist && sha256sum veridical-*

clean:
	rm -rf $(VENV) site

# torch has files of its own: its build for CPUs where pip is told of a place that has it, else that of PyPI, on Linux
# with CUDA. --no-deps: what is to be installed stands there, with hashes, and nothing else is looked for.
$(VENV)/.torch: requirements/torch-cpu.txt requirements/torch.txt | $(VENV)/.python
	$(LOCKED) --requirement requirements/torch-cpu.txt || $(LOCKED) --requirement requirements/torch.txt
	touch $@

$(VENV)/.python:
	$(PYTHON) -c "import sys; sys.exit('veridical needs Python 3.11 or newer; try make PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	touch $@

# The site is made from what is written in the source: it needs neither torch nor veridical installed.
$(VENV)/.docs: requirements/docs.txt | $(VENV)/.python
	$(LOCKED) --requirement requirements/docs.txt
	touch $@

$(VENV)/.demo: $(VENV)/.torch constraints.txt pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[compare]"
	touch $@

$(VENV)/.test: $(VENV)/.torch requirements/lock.txt pyproject.toml
	$(LOCKED) --requirement requirements/lock.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@
