# Everything on a fresh machine: `make demo`, `make test`. Needs Python 3.10 to 3.13, make, and a C/C++ compiler
# (Debian: build-essential python3-dev python3-venv git; cmake comes from PyPI).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check vendor bench unsloth-signatures clean

demo: $(VENV)/train
	$(BIN)/ggufy demo

test: $(VENV)/dev vendor
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The export benchmark and others live in benchmarks/; each prints its own ratio.
bench: $(VENV)/dev vendor
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# Downloads several GB into build/unsloth; not part of CI.
unsloth-signatures: $(VENV)/dev
	$(BIN)/python tests/train/unsloth_signatures.py build/unsloth

vendor: vendor/llama.cpp/convert_hf_to_gguf.py

vendor/llama.cpp/convert_hf_to_gguf.py: vendor/llama.cpp/PIN vendor/unpack.py | $(BIN)/pip
	$(BIN)/python vendor/unpack.py

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

KERNELS := $(wildcard ggufy/export/kernels/*.[ch]) ggufy/export/kernels/build.py

$(VENV)/train: pyproject.toml hatch_build.py $(KERNELS) | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/dev: $(VENV)/train
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find vendor/llama.cpp -mindepth 1 ! -name README.md ! -name PIN -delete
