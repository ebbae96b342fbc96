# Everything runs in .venv, made from constraints.txt the first time a target needs it.
PYTHON ?= python3
BIN := .venv/bin
# Tests of sweeps (tests/conftest.py) and of kills mostly wait: so two more than processors.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)

.PHONY: demo test test-all pytest-all lint format clean

demo: .venv/.installed
	$(BIN)/python -m benchmark.run --table II

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not slow"

# The linters beside the tests, while these wait: nobody sits in front of them to see the first line that fails.
test-all: .venv/.installed
	@$(MAKE) --no-print-directory --jobs=2 lint pytest-all

pytest-all: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
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
