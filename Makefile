# `make` alone lists the targets. Everything is installed into .venv, from lock files with hashes:
# requirements.lock is all of it, requirements-service.lock the part that serving takes, which is
# installed in less than half the time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header pyproject.toml --extra build $(UPGRADE)
SERVICE := $(VENV)/.service
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test check bench screenshots lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(SERVICE): requirements-service.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or later: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --require-hashes -r requirements-service.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED): requirements.lock $(SERVICE)
	$(PIP_INSTALL) --require-hashes -r requirements.lock
	@touch $@

install: $(INSTALLED) ## Install Holdfast and its tools into .venv

run: $(SERVICE) ## Serve on the embedded store under ./data, with a sample shop and live shoppers
	$(BIN)/holdfast serve --with-demo

test: check ## Run the checks, then every test
	$(BIN)/python -m pytest -m ''

check: $(INSTALLED) ## Lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED) ## Run the benchmarks
	$(BIN)/python -m bench

screenshots: $(INSTALLED) ## Take the pictures of the README anew, in a Chromium on PATH
	$(BIN)/python -m tests.browser.screenshots

lock: $(INSTALLED) ## Lock what pyproject.toml asks for; with UPGRADE=--upgrade, the newest of it
	$(COMPILE) --extra test --output-file requirements.lock
	$(COMPILE) --constraint requirements.lock --output-file requirements-service.lock

clean: ## Remove the virtual environment and every cache, but never ./data
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
