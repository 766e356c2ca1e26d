# make reproduce [STUDY=learning_rate_transfer] · make test · make lint · make bench · make bench-gpu · make docs · make notebooks
# Needs Python >= 3.11, make and git. Uses uv where it is installed.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
PRESET ?= cpu
STUDY ?= $(patsubst experiments/configs/%.py,%,$(filter-out %/__init__.py,$(wildcard experiments/configs/*.py)))
STUDIES = $(STUDY)
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


.PHONY: docs install reproduce test test-slow test-studies test-all test-newest lint format bench bench-gpu notebooks clean
.DEFAULT_GOAL := install

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(MAKE_VENV)
	$(PIP) -c constraints.txt -e '.[$(EXTRAS)]'
	$(PIP) --no-deps $(REFERENCE)
	@touch $@

# Each study with its claims table, figures and page; of several studies, one table of all claims at the end.
# Several side by side: make --jobs=4 --output-sync reproduce, where memory and cores allow.
reproduce: $(STUDIES:%=reproduce-%)
	@$(if $(word 2,$(STUDIES)),$(BIN)/python -m experiments.report $(foreach study,$(STUDIES),$(RUNS)/$(study)-$(PRESET)))

reproduce-%: install
	@$(BIN)/python -m experiments.run --config=experiments/configs/$*.py:$(PRESET) --workdir=$(RUNS)/$*-$(PRESET)

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(TESTS)

# The end-to-end runs that `make test` leaves out: smoke presets of the heavier studies. `make docs` runs the notebooks.
test-studies: install
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/experiments/test_studies.py tests/experiments/test_faults.py \
	  tests/experiments/test_ntk_convergence.py tests/experiments/test_card.py tests/ntk/test_examples.py -m slow

# The slow tests of the packages: random networks, slopes, every derivative, Monte Carlo, several processes.
test-slow: install
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/ntk tests/limits tests/metrics -m slow \
	  --ignore=tests/ntk/test_examples.py

test-all: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The same tests on Python 3.12 with the newest JAX, where a python3.12 is found; TESTS="tests/ntk ..." some of them.
test-newest:
	@PYTHON312=$$(sh .ci/find-python312); \
	if [ -z "$$PYTHON312" ]; then echo "no python3.12 here: the newest JAX is not tested"; \
	else $(MAKE) test PYTHON=$$PYTHON312 VENV=.venv312; fi

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers go in an environment of their own; without --no-deps they pull a CUDA build of several GB.
PEERS = laplax loguru kfac-jax distrax tensorflow-probability dm-tree immutabledict mup pyhessian curvlinops-for-pytorch backpack-for-pytorch einconv linear_operator jaxtyping wadler-lindig
bench: VENV := .venv-bench
bench:
	$(MAKE) install VENV=$(VENV)
	$(PIP) torch==2.13.0 einops tqdm matfree pandas seaborn
	$(PIP) --no-deps $(PEERS)
	$(BIN)/python -m benchmarks.run $(BENCH)

# On a machine with a GPU, in under nine minutes: benchmarks/results/accelerator_gpu.json. Without one, a look at whether
# it runs: make bench-gpu BENCH=--size=small EXTRAS=test VENV=.venv
bench-gpu: EXTRAS := test,cuda
bench-gpu: VENV := .venv-gpu
bench-gpu:
	$(MAKE) install VENV=$(VENV) EXTRAS=$(EXTRAS)
	$(BIN)/python -m benchmarks.accelerator $(BENCH)

# Static pages in docs/_build; the notebooks are executed, and a warning is an error.
docs: install
	$(PIP) -c constraints.txt -e '.[$(EXTRAS),docs]'
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build

notebooks: install
	$(PIP) -c constraints.txt -e '.[notebooks]'
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv .venv312 build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
