# `make demo` and `make test` set themselves up: all they need is Python 3.11 or newer with venv.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO_OUT ?= demo
# two tests at a time, a thread each; JOBS=1 for one after the other
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# OpenMP's threads spin while they wait for each other; on shared cores that makes torch many times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-all check docs clean

setup: $(VENV)/dev  ## development environment: the package, its test tools, its extras

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "glocal needs Python 3.11 or newer: none found. Say which: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: pyproject.toml | $(BIN)/python
	@echo "Installing glocal and PyTorch into $(VENV) (about a minute, 5.5 GB) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/base
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/base  ## compare a CNN, a hybrid and a Transformer on built-in real images
	$(BIN)/glocal compare fashion-mini --models resnet_micro,botnet_micro,vit_micro --seeds 2 --out $(DEMO_OUT) --resume

# those of reliability fork, which a process with the threads of other libraries (OpenVINO, Ray) cannot do safely
test: $(VENV)/dev  ## the quick tests, no network
	$(PYTEST) tests/reliability
	$(PYTEST) --ignore=tests/reliability

test-all: $(VENV)/dev  ## everything, the slow tests included
	$(PYTEST) tests/reliability -m ''
	$(PYTEST) --ignore=tests/reliability -m ''

check: $(VENV)/dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/dev  ## tables and figures under docs/ that are made from the code
	$(BIN)/python docs/make.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo screenshots
