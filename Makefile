# make demo   sample data, short trainings, tests, fusion, ensemble and reports; creates its environment
# make test   the full test suite; creates its environment
# make bench  all speed benchmarks that run on a CPU: benchmarks/RESULTS.md
# make fuzz   5,000 damaged files, and every flag of every command with hostile values
# make kills  100 sequences of kills and Ctrl-C over all commands, compared with uninterrupted runs (10 minutes)
# make check  lint, format, types and tests, as in CI
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test bench fuzz kills check lint env clean

env: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: env
	$(BIN)/python -m util.demo --out demo

test: env
	$(BIN)/python -m pytest

bench: env
	$(BIN)/python -m benchmarks.suite --work bench

fuzz: env
	FUZZ_CASES=5000 $(BIN)/python -m pytest tests/fuzz

kills: env
	$(BIN)/python -m benchmarks.kills --work kills --sequences 100

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) demo bench kills .pytest_cache .mypy_cache .ruff_cache
