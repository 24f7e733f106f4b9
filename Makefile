# Needs only Python 3.11 or newer. `make` lists the targets; `make run` and `make test` install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
PREFIX ?= /usr/local
WHEEL := build/wheel
PINS := packaging/requirements
# A stamp: the configuration, the manual pages, the completions and echod@.service in build/ are up to date.
GENERATED := build/.generated
# Stamps: the environment has the packages that the lock files pin. A change of a lock file installs again.
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
# A separate environment, because mutmut depends on rich, and structlog formats tracebacks differently if rich is installed.
MUTATION := $(VENV)-mutation
PARALLEL := --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-faults test-system soak mutate lint bench screenshots format reference lock install uninstall deb image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN) ## serve in the foreground on port 7007, with config/echod.toml
	@exec $(BIN)/echod run --config config/echod.toml

test: $(DEV) ## run the tests, with coverage
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --ignore tests/system -m "not slow" $(PARALLEL) $(PYTEST)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-faults: $(DEV) ## run the slow tests: storms, abuse, faults of every kind, a real Prometheus
	@$(BIN)/pytest --ignore tests/system -m slow $(PARALLEL) $(PYTEST)
	@$(if $(PYTEST),:,ECHOD_TEST_EXAMPLES=20 $(BIN)/pytest tests/property/test_daemon.py --numprocesses auto)

test-system: $(DEV) ## test the package on a booted Debian with systemd, and the image (as root on Debian; installs what it needs)
	@root=$$(tests/system/prepare) && made=$$($(MAKE) --no-print-directory deb) \
	&& package=$$(echo "$$made" | tail -n 1) \
	&& ECHOD_TEST_ROOT="$$root" ECHOD_TEST_PACKAGE="$$package" $(BIN)/pytest tests/system $(PYTEST)

soak: $(RUN) ## run every kind of client for SOAK_MINUTES=10 or for SOAK_CONNECTIONS=; then look for leaks
	@exec $(BIN)/python -m tests.soak $(if $(SOAK_MINUTES),--minutes $(SOAK_MINUTES)) \
		$(if $(SOAK_CONNECTIONS),--connections $(SOAK_CONNECTIONS))

mutate: ## change the core in many small ways, and count the changes that no test notices (docs/mutation.md)
	@$(MAKE) --no-print-directory VENV=$(MUTATION) $(MUTATION)/.mutation
	@$(MUTATION)/bin/python -m tests.mutation $(MUTMUT)

lint: $(DEV) ## check rules, format, types and imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(DEV) ## compare with other servers, in half an hour; QUICK=1: a rough look, in under two minutes
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH)

screenshots: $(DEV) ## draw the pictures of the status page in docs/ (needs Chromium)
	@$(BIN)/python -m tests.monitoring.screenshots

format: $(DEV) ## format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

reference: $(RUN) ## write the generated files that are committed: config/echod.*, the table in docs/configuration.md
	@PYTHONPATH=packaging $(BIN)/python -m generate reference

lock: ## pin new dependencies, with hashes (needs uv); UPGRADE=1: move all pins to the newest versions
	uv pip compile $(LOCK) --output-file $(PINS)/run.txt pyproject.toml
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --group pyproject.toml:run --output-file $(PINS)/build.txt
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --constraint $(PINS)/build.txt --group dev \
		--output-file $(PINS)/dev.txt pyproject.toml
	uv pip compile $(LOCK) --constraint $(PINS)/run.txt --constraint $(PINS)/build.txt --constraint $(PINS)/dev.txt \
		--group pyproject.toml:mutation --output-file $(PINS)/mutation.txt
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(if $(UPGRADE),--upgrade)

install: $(WHEEL) $(GENERATED) ## install below PREFIX=/usr/local and /etc/echod; with DESTDIR=, everything below that
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHON="$(PYTHON)" packaging/install $(BIN)/python $(WHEEL)/echod-*.whl
	@echo "installed below $(DESTDIR)$(PREFIX); next: systemd-sysusers, systemctl daemon-reload, systemctl enable --now echod"

uninstall: ## remove what install has installed, except the configuration
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/uninstall

deb: $(WHEEL) $(GENERATED) ## build the Debian package in dist/, for the version of Debian that this machine has
	@packaging/deb/build $(BIN)/python $(WHEEL)/echod-*.whl $(DEB_VERSION)

image: $(WHEEL) ## build the image of a container, IMAGE=echod:VERSION, from BASE=debian:trixie-slim, with podman, buildah or docker
	@IMAGE="$(IMAGE)" BASE="$(BASE)" ENGINE="$(ENGINE)" WHEELS="$(WHEELS)" packaging/container/build $(WHEEL)/echod-*.whl

clean: ## remove everything that make has made (also after moving the source tree)
	rm -rf $(VENV) $(MUTATION) build dist mutants .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "echod needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) && touch $@ || { rm -rf $(VENV); exit 1; }

$(RUN): $(PINS)/run.txt $(PINS)/build.txt pyproject.toml | $(VENV)/.made
	@echo "Installing echod into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/run.txt --requirement $(PINS)/build.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(DEV): $(PINS)/dev.txt $(RUN)
	@echo "Installing the tools for development into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/dev.txt
	@touch $@

$(VENV)/.mutation: $(PINS)/mutation.txt $(DEV)
	@echo "Installing mutmut into $(VENV) ..."
	@$(PIP) --require-hashes --requirement $(PINS)/mutation.txt
	@touch $@

# A new folder for each build, so that it holds one wheel.
$(WHEEL): $(RUN) $(wildcard echod/*.py echod/*/*.py echod/*/*.html) README.md LICENSE
	@rm -rf $@
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-build-isolation --no-deps --wheel-dir $@ . || { rm -rf $@; exit 1; }

$(GENERATED): $(RUN) $(wildcard packaging/generate/*.py echod/*.py echod/*/*.py) systemd/echod.service CHANGELOG.md
	@PYTHONPATH=packaging $(BIN)/python -m generate build
	@touch $@
