# From a bare machine with Python: make study, make test, make bench, make docs.
PYTHON ?= python3
VENV ?= .venv
STUDY_ARGS ?=
PYTEST_ARGS ?=
DOCS_ARGS ?=

PY = $(VENV)/bin/python
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: study test lint bench bench-cuda docs coverage env clean

study: env
	$(PY) -m baselines study $(STUDY_ARGS)

# One torch thread per pytest worker; a test that needs two sets them itself, and waiting threads must not spin.
# Nothing is skipped for a missing package: env installs them all.
test: lint
	EQUILAYERS_REQUIRE_ESCNN=1 EQUILAYERS_REQUIRE_MODELS=1 \
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: env
	$(PY) -m pytest benchmarks $(PYTEST_ARGS)

# The layers on a GPU, as Markdown. Where there is none it says so and fails.
bench-cuda: env
	$(PY) -m benchmarks cuda

# Into site/. A warning is an error (--strict, which --quiet would undo); the variable silences an advertisement.
docs: env
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --clean $(DOCS_ARGS)

coverage: env
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest $(PYTEST_ARGS)
	$(PY) -m coverage report

env: $(VENV)/.ready

# escnn with --no-deps, because two of its needs do not install beside ours: py3nj builds with Fortran, and the lie_learn
# wheel is compiled against numpy 1. Both serve SO(3) only; benchmarks/peers.py imports escnn without them.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[dev]' joblib
	$(PIP_INSTALL) --no-deps escnn
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
