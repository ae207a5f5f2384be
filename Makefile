.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SECONDS_OF_DEMO ?=
# Test processes beside each other: more than cores, since most tests wait for servers and timers. Each acceptance test
# runs all stages, so two of those fill two cores.
WORKERS ?= 4
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help install install-dev demo test test-fast check bench up docs lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements/sandbox.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tartan needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "Installing locked packages into $(VENV): one to two minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements/sandbox.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	@echo "Installing the locked packages of checks and tests"
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

install: $(VENV)/.installed ## Install what running needs, locked by hash, into .venv

install-dev: $(VENV)/.installed-dev ## Install what checks and tests need as well

demo: install ## Run everything on this machine, live, until Ctrl-C
	@$(BIN)/tartan demo $(if $(SECONDS_OF_DEMO),--for $(SECONDS_OF_DEMO))

up: install ## Run a sandbox that stays: Kafka, Postgres, a simulated Plaid and every stage; data in .tartan
	$(BIN)/tartan up

check: install-dev ## Lint, check types, direction of imports and schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/tartan schemas check

test: check ## Run all checks and tests with a real Kafka and Postgres; EXAMPLES=20 draws more generated cases
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --ignore tests/acceptance; first=$$?; \
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/acceptance; exit $$((first | $$?))

test-fast: install-dev ## Run the tests that need no server
	EXAMPLES=$(or $(EXAMPLES),0.2) $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not servers" tests/unit tests/property tests/contract

bench: install ## Measure the whole way
	$(BIN)/tartan bench end-to-end

docs: install ## Generate the reference pages from the code
	$(BIN)/tartan docs --write docs
	$(BIN)/tartan schemas docs --write docs/events.md
	$(BIN)/tartan schemas asyncapi --write docs/asyncapi.json

LOCK := uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: ## Renew the locked requirements (needs uv)
	$(LOCK) requirements/dev.in -o requirements/dev.txt
	$(LOCK) --constraint requirements/dev.txt requirements/sandbox.in -o requirements/sandbox.txt
	$(LOCK) --constraint requirements/dev.txt requirements/runtime.in -o requirements/runtime.txt

clean: ## Remove the virtual environment and the sandbox's data
	rm -rf $(VENV) .tartan .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
