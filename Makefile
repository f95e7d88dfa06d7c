# make train   train and test a ViT on CIFAR-10, from nothing
# make test    lint, unit tests, notebooks in a small fast mode
# make test-browser   the notebooks as people use them, in Chromium; skipped where there is none
# make lab     open the notebooks
# make setup   only the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup train test test-browser lab

setup: $(VENV)/.installed

train: setup
	$(BIN)/python notebooks/execute.py 02_train_cifar10 $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(ARGS)

test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m browser -rs tests/browser $(ARGS)

lab: setup
	$(BIN)/jupyter lab notebooks

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -e ".[test]"
	touch $@
