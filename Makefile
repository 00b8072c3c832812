# The two commands of the README, and the developer's. Everything lives in .venv; a stamp file says
# that it is up to date, so that a second call starts at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export NUMBA_CACHE_DIR ?= $(CURDIR)/.venv/numba-cache

.PHONY: demo test lint bench

demo: .venv/.demo
	$(BIN)/sparsecraft compare

test: .venv/.dev
	$(BIN)/python -m pytest -n 2

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# Dependency groups need a pip of 2025 or later, and a fresh venv may bring an older one.
$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo]"
	touch $@

.venv/.dev: .venv/.demo
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo]" --group dev
	touch $@
