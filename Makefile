# make demo    compare losses on photographs that ship with two of the dependencies
# make test    the whole test suite
# make check   what pre-commit checks: format, lint, types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test check clean

demo: $(VENV)/.demo
	$(BIN)/veridical compare --demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

# torch goes first and pinned: nothing after it may choose another build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c "import sys; sys.exit('veridical needs Python 3.11 or newer; try make PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[compare]"
	touch $@

# The packages lpips and DISTS-pytorch import torchvision, whose wheels do not fit every torch; the tests that compare
# with them bring a stand-in, so their dependencies are left out.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(PIP) --no-deps lpips==0.1.4 DISTS-pytorch==0.1
	touch $@
