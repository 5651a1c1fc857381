# A newcomer needs two commands: `make demo` and `make test`. Both set up .venv.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.antigram-ready

# bench-gpu runs on a machine with PyTorch and no package index. Run `make wheels` first on a machine
# with an index, and copy the folder.
GPU_PYTHON ?= python3
GPU_DEVICE ?= cuda
WHEELS_FOR ?= 3.12
WHEELS := zarr numcodecs donfig google-crc32c h5py msgpack pyyaml packaging typing-extensions \
	soundfile soxr cffi pycparser scipy filelock
PLATFORMS := $(foreach n,28 27 24 17 12 5,--platform manylinux_2_$(n)_x86_64) \
	--platform manylinux2014_x86_64 --platform manylinux1_x86_64

# Rounds of benchmarks.step_pairs. The committed result has 60, and takes 20 minutes.
BENCH_PAIRS ?= 20

DOCS_STAMP := $(VENV)/.antigram-docs

.PHONY: setup demo test test-all check docs changelog bench wheels bench-gpu clean

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

test-all: $(DOCS_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[s3,test-s3]"
	$(BIN)/python -m pytest -m "gpu or not gpu"

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Write the section Unreleased from the fragments in changes/; with VERSION, write the section of a
# release and delete the fragments.
changelog: $(DOCS_STAMP)
	sed -i '/^## Unreleased/,/^## [0-9]/{/^## [0-9]/!d}' CHANGELOG.md
	$(BIN)/towncrier build $(if $(VERSION),--yes --version $(VERSION),--keep --version Unreleased --date main)

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.rows
	$(BIN)/python -m benchmarks.train_step --device cpu --steps 3
	$(BIN)/python -m benchmarks.step_pairs --pairs $(BENCH_PAIRS)
	$(BIN)/python -m benchmarks.share_device
	$(BIN)/python -m benchmarks.epoch_end
	$(BIN)/python -m benchmarks.intervals
	$(BIN)/python -m benchmarks.tables

wheels: setup
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		--only-binary=:all: --python-version $(WHEELS_FOR) --implementation cp $(PLATFORMS) \
		--dest wheels $(WHEELS)

bench-gpu:
	if test -d wheels; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps \
		--no-compile --upgrade --target .bench-site wheels/*.whl; fi
	set -e; run() { PYTHONPATH=.bench-site:. $(GPU_PYTHON) -m benchmarks.train_step \
		--device $(GPU_DEVICE) $(BENCH) "$$@"; }; \
	run --precision 32 --steps 40 --nets 1,2,4 --device-memory 0,auto --name train_step-gpu-32; \
	run --precision tf32 --steps 40 --nets 1,4 --name train_step-gpu-tf32; \
	run --precision bf16 --steps 40 --nets 1,4 --name train_step-gpu-bf16; \
	run --precision tf32 --steps 40 --nets 1,4 --batch 128 --device-memory 0,auto \
		--name train_step-gpu-tf32-128

clean:
	rm -rf $(VENV) wheels .bench-site docs/_build
