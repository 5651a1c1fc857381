# Two commands a newcomer needs: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.antigram-ready

.PHONY: setup demo test test-all check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,demo]"
	touch $@

demo: setup
	$(BIN)/antigram demo

test: setup
	$(MAKE) check

test-all: setup
	$(BIN)/python -m pytest -m "gpu or not gpu"

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.train_step --device cpu

clean:
	rm -rf $(VENV)
