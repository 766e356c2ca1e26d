# make reproduce [STUDY=learning_rate_transfer] · make test · make lint · make bench · make notebooks
# Needs Python >= 3.11, make and git. Uses uv where it is installed.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN = $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# neural-tangents without TensorFlow, which only its unused experimental part imports.
REFERENCE = neural-tangents==0.6.5 frozendict
# The constraints pin what CI installs on Python 3.11; newer Pythons get the newest releases.
EXTRAS ?= test

ifdef UV
PIP = $(UV) pip install --quiet --python $(BIN)/python
MAKE_VENV = $(UV) venv --quiet --python $(PYTHON) $(VENV)
else
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
MAKE_VENV = $(PYTHON) -m venv $(VENV)
endif

.PHONY: install reproduce report test test-all test-newest lint format bench notebooks clean
.DEFAULT_GOAL := install

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(MAKE_VENV)
	$(PIP) -c constraints.txt -e '.[$(EXTRAS)]'
	$(PIP) --no-deps $(REFERENCE)
	@touch $@

reproduce: install
	$(BIN)/python -m experiments.reproduce $(STUDY) --runs $(RUNS)

test: install
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: install
	$(BIN)/python -m pytest -n 2

# The same tests on Python 3.12 with the newest JAX, where a python3.12 is found.
test-newest:
	@PYTHON312=$$(sh .ci/find-python312); \
	if [ -z "$$PYTHON312" ]; then echo "no python3.12 here: the newest JAX is not tested"; \
	else $(MAKE) test PYTHON=$$PYTHON312 VENV=.venv312; fi

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.run $(BENCH)

notebooks: install
	$(PIP) -c constraints.txt -e '.[notebooks]'
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv .venv312 build dist *.egg-info .pytest_cache .ruff_cache
