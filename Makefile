# make train   train and test a ViT on CIFAR-10, from nothing
# make test    lint, unit tests, notebooks in a small fast mode
# make test-browser   the notebooks as people use them, in Chromium; skipped where there is none
# make lab     open the notebooks
# make setup   only the environment
# make test-faults   every known fault: 140 killed trainings, 24,000 damaged files, the tests of 99 rows (20 minutes)
# make audit   known weaknesses of the packages this project asks for; needs a network that reaches the package registry

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup train test test-browser test-faults audit lab

setup: $(VENV)/.installed

train: setup
	$(BIN)/python notebooks/execute.py 02_train_cifar10 $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m browser -rs tests/browser $(ARGS)

test-faults: $(VENV)/.installed-test
	$(BIN)/python benchmarks/faults.py $(ARGS)

audit: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet "pip-audit>=2.7"
	$(BIN)/python .ci/audit.py

lab: setup
	$(BIN)/jupyter lab notebooks

# One call of pip for the tests too, which looks for what fits together once.
$(VENV)/.installed $(VENV)/.installed-test: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	    'Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + '; try: make PYTHON=python3.13')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt $(if $(filter %-test,$@),-e ".[test]")
	touch $(VENV)/.installed $@
