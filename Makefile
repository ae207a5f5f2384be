.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SECONDS_OF_DEMO ?=
BESIDE := tests/unit tests/property tests/simulation tests/integration/cli \
	tests/integration/projections/test_rebuild.py tests/integration/projections/test_republish.py \
	tests/integration/projections/test_publisher_kills.py tests/integration/projections/test_published_schemas.py \
	tests/integration/projections/test_events_consumer.py tests/integration/projections/test_log_verify.py \
	$(wildcard tests/integration/projections/test_versions*.py tests/integration/runtime/test_archive*.py \
	tests/integration/sandbox/test_bench_*.py)

.PHONY: help install demo test check bench up lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tartan needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(VENV)/.installed ## Install everything, locked by hash, into .venv

demo: install ## Run the whole way on this machine, live, until Ctrl-C
	@$(BIN)/tartan demo $(if $(SECONDS_OF_DEMO),--for $(SECONDS_OF_DEMO))

check: install ## Lint, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/tartan schemas check

# Two lanes: what computes and what replays, each test with servers' databases and topics of its own, beside what waits
# for running stages.
test: check ## All checks and tests, with a real Kafka and a real Postgres; EXAMPLES=20 for more of what is generated
	@mkdir -p .pytest_cache; log=.pytest_cache/beside.log; \
	$(BIN)/pytest -p no:cacheprovider $(BESIDE) > $$log 2>&1 & beside=$$!; trap "kill $$beside 2> /dev/null" EXIT INT TERM; \
	$(BIN)/pytest $(addprefix --ignore=,$(BESIDE)); first=$$?; \
	echo "waiting for the tests beside"; wait $$beside; beside=$$?; trap - EXIT; cat $$log; \
	exit $$((first | beside))

bench: install ## Measure the whole way
	$(BIN)/tartan bench end-to-end

up: install ## A sandbox that stays: Kafka, Postgres, the Plaid simulator and every stage, data kept in .tartan
	$(BIN)/tartan up

lock: ## Renew the locked requirements (needs uv)
	uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements/dev.in -o requirements/dev.txt
	uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --constraint requirements/dev.txt requirements/runtime.in -o requirements/runtime.txt

clean: ## Remove the virtual environment and the sandbox's data
	rm -rf $(VENV) .tartan .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
