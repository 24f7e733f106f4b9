# echod from a bare machine with Python 3.11 or newer: `make run`, `make test`. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
PREFIX ?= /usr/local
WHEEL := build/wheel
PINS := packaging/requirements
# Written when the manual pages, the completions and the instance unit below build/ are up to date.
GENERATED := build/.generated
# Written when the environment has what the file beside it pins; made anew when that changes.
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
# An environment of its own: with rich, on which mutmut depends, tracebacks look different.
MUTATION := $(VENV)-mutation
PARALLEL := --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-faults test-system soak mutate lint bench format reference lock install uninstall deb clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN) ## serve in the foreground on port 7007, by config/echod.toml
	@exec $(BIN)/echod run --config config/echod.toml

test: $(DEV) ## the suite, with coverage
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --ignore tests/system -m "not slow" $(PARALLEL) $(PYTEST)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-faults: $(DEV) ## the rest: storms, abuse, faults of all kinds, and a real Prometheus
	@$(BIN)/pytest --ignore tests/system -m slow $(PARALLEL) $(PYTEST)
	@$(if $(PYTEST),:,ECHOD_TEST_EXAMPLES=20 $(BIN)/pytest tests/property/test_daemon.py --numprocesses auto)

test-system: $(DEV) ## the package on a booted Debian with systemd (root, on Debian; installs what it needs)
	@root=$$(tests/system/prepare) && made=$$($(MAKE) --no-print-directory deb) \
	&& package=$$(echo "$$made" | tail -n 1) \
	&& ECHOD_TEST_ROOT="$$root" ECHOD_TEST_PACKAGE="$$package" $(BIN)/pytest tests/system $(PYTEST)

soak: $(RUN) ## every kind of client for SOAK_MINUTES=10, or until SOAK_CONNECTIONS= were served; what is left then
	@exec $(BIN)/python -m tests.soak $(if $(SOAK_MINUTES),--minutes $(SOAK_MINUTES)) \
		$(if $(SOAK_CONNECTIONS),--connections $(SOAK_CONNECTIONS))

mutate: ## look whether the tests see each small change of the core (see docs/mutation.md)
	@$(MAKE) --no-print-directory VENV=$(MUTATION) $(MUTATION)/.mutation
	@$(MUTATION)/bin/python -m tests.mutation $(MUTMUT)

lint: $(DEV) ## rules, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(RUN) ## compare with others, for half an hour; QUICK=1: in under two minutes, as no evidence
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH)

format: $(DEV) ## put the code into its form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

reference: $(RUN) ## write the generated files that are committed: config/, the table in docs/configuration.md
	@PYTHONPATH=packaging $(BIN)/python -m generate reference

lock: ## pin new dependencies, with hashes; UPGRADE=1 also moves all others to their newest version (needs uv)
	uv pip compile $(LOCK) --output-file $(PINS)/run.txt pyproject.toml
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --group pyproject.toml:run --output-file $(PINS)/build.txt
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --constraint $(PINS)/build.txt --group dev \
		--output-file $(PINS)/dev.txt pyproject.toml
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --constraint $(PINS)/build.txt --constraint $(PINS)/dev.txt \
		--group pyproject.toml:mutation --output-file $(PINS)/mutation.txt
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(if $(UPGRADE),--upgrade)

install: $(WHEEL) $(GENERATED) ## install below PREFIX (/usr/local) and, for the configuration, /etc; all of it in DESTDIR, if given
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHON="$(PYTHON)" packaging/install $(BIN)/python $(WHEEL)/echod-*.whl

uninstall: ## take away what install has put there, but not the configuration
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/uninstall

deb: $(WHEEL) $(GENERATED) ## the Debian package in dist/, for the Debian on which this is
	@packaging/deb/build $(BIN)/python $(WHEEL)/echod-*.whl $(DEB_VERSION)

clean: ## remove what make has made; also the cure if the directory was moved
	rm -rf $(VENV) $(MUTATION) build dist mutants .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "echod needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) && touch $@ || { rm -rf $(VENV); exit 1; }

$(RUN): $(PINS)/run.txt $(PINS)/build.txt pyproject.toml | $(VENV)/.made
	@echo "Installing echod into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/run.txt --requirement $(PINS)/build.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(DEV): $(PINS)/dev.txt $(RUN)
	@echo "Installing the tools for tests into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/dev.txt
	@touch $@

$(VENV)/.mutation: $(PINS)/mutation.txt $(DEV)
	@echo "Installing the tool for mutants into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/mutation.txt
	@touch $@

# A folder for each build: what it holds is the one wheel.
$(WHEEL): $(RUN) $(wildcard echod/*.py echod/*/*.py) README.md LICENSE
	@rm -rf $@
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-build-isolation --no-deps --wheel-dir $@ . || { rm -rf $@; exit 1; }

$(GENERATED): $(RUN) $(wildcard packaging/generate/*.py echod/*.py echod/*/*.py) systemd/echod.service CHANGELOG.md
	@PYTHONPATH=packaging $(BIN)/python -m generate build
	@touch $@
