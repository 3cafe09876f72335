# Needs Python 3.10 to 3.13 with its venv module, and nothing else installed by hand.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n auto

.PHONY: help demo test check train

help:
	@echo "make demo   optimise the shipped digits network and judge it on digits it never saw"
	@echo "make test   run the tests"
	@echo "make check  formatting, lint, types and import contract"
	@echo "make train  train the shipped network again (installs PyTorch into $(VENV)-train)"

# One thread an operator: the modelled-against-measured figures are per core, and parallel test workers share the machine.
demo test: export OMP_NUM_THREADS = 1

demo: $(VENV)/installed
	$(BIN)/python -m models.demo $(DEMO_ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

train: $(VENV)-train/installed
	$(VENV)-train/bin/python -m models.train_digits

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(VENV)/installed $@

$(VENV)-train/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-train
	$(VENV)-train/bin/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	touch $@
