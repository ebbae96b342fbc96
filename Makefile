# Everything runs in .venv, made from constraints.txt the first time a target needs it.
PYTHON ?= python3
BIN := .venv/bin
# Some tests wait: of the quick ones few, of all those of sweeps (tests/conftest.py) and of kills. Each process imports
# everything and collects all tests, which takes ten seconds of a processor.
PROCESSORS := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: demo test test-all pytest pytest-all lint ruff mypy format clean

demo: .venv/.installed
	$(BIN)/python -m benchmark.run --table II

# mypy beside the tests, while these wait; what ruff finds in a second stops everything.
test: ruff
	@$(MAKE) --no-print-directory --jobs=2 mypy pytest

test-all: ruff
	@$(MAKE) --no-print-directory --jobs=2 mypy pytest-all

pytest: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(or $(WORKERS),$(shell expr $(PROCESSORS) + 1)) -m "not slow"

pytest-all: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(or $(WORKERS),$(shell expr $(PROCESSORS) + 2))

lint: ruff mypy

ruff: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: .venv/.installed
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; run make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache
