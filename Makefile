# echod from a bare machine with Python 3.11 or newer: `make run`, `make test`. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
# Written when the environment has what the file beside it pins; made anew when that changes.
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
PARALLEL := --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-faults lint format reference lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN) ## serve in the foreground on port 7007, by config/echod.toml
	@exec $(BIN)/echod run --config config/echod.toml

test: $(DEV) ## the suite, with coverage
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not slow" $(PARALLEL) $(PYTEST)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-faults: $(DEV) ## the rest: storms, abuse, and a real Prometheus
	@$(BIN)/pytest -m slow $(PARALLEL) $(PYTEST)

lint: $(DEV) ## rules, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(DEV) ## put the code into its form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

reference: $(RUN) ## write what is generated: config/, man/, completions/, the README's table
	@$(BIN)/python -m echod.reference
	@$(BIN)/python -m echod.manual

lock: ## pin the newest dependencies, with hashes (needs uv)
	uv pip compile $(LOCK) --group run --output-file requirements.txt pyproject.toml
	uv pip compile $(LOCK) --group dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade

clean: ## remove what make has made; also the cure if the directory was moved
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "echod needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) && touch $@ || { rm -rf $(VENV); exit 1; }

$(RUN): requirements.txt pyproject.toml | $(VENV)/.made
	@echo "Installing echod into $(VENV) ..."
	@$(PIP) --require-hashes --requirement requirements.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUN)
	@echo "Installing the tools for tests into $(VENV) ..."
	@$(PIP) --require-hashes --requirement requirements-dev.txt
	@touch $@
