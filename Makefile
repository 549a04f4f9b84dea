MAKEFLAGS += --no-print-directory
# Every target is one line that people and CI run alike; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
# Asked first: pip's own answer names only some package, and the folder left behind would spoil the next try.
NEW_VENV = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cmerwatch needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make $(MAKECMDGOALS) PYTHON=python3.12")' && $(PYTHON) -m venv

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(DEMO_VENV)/.demo: pyproject.toml
	@test -x $(DEMO_VENV)/bin/pip || { $(NEW_VENV) $(DEMO_VENV); }
	@$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[demo]' >&2
	@touch $@

.venv-dev/.dev: pyproject.toml
	@test -x .venv-dev/bin/pip || { $(NEW_VENV) .venv-dev; }
	@.venv-dev/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' >&2
	.venv-dev/bin/python -m pip install --quiet -e '.[demo,torch]' --group dev >&2
	@touch $@

setup: .venv-dev/.dev ## install everything the tests and checks need (with torch)

demo: $(DEMO_VENV)/.demo ## a filled console from a bare checkout (no torch); ARGS="--port 8383 --json"
	@exec $(DEMO_VENV)/bin/cmerwatch demo $(ARGS)

up: $(DEMO_VENV)/.demo ## the same stack without seeded data
	@exec $(DEMO_VENV)/bin/cmerwatch up $(ARGS)

test: setup ## all tests, with a Postgres and a Redis of their own
	.venv-dev/bin/pytest -q -n 4 --dist loadgroup $(ARGS)

lint: setup ## ruff, mypy and the import rules
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/lint-imports

fix: setup ## let ruff mend what it can
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .

faults: setup ## the long kill runs
	CMERWATCH_LONG_FAULTS=1 .venv-dev/bin/pytest tests/faults -x $(ARGS)

bench: setup ## print the figures of bench/README.md
	.venv-dev/bin/python -m bench $(ARGS)

screenshots: setup ## make docs/img/ again
	.venv-dev/bin/python bench/screenshots.py

revision: setup ## a new migration; M="what it changes", CMERWATCH_DATABASE_URL set
	.venv-dev/bin/alembic revision --autogenerate -m "$(M)"

.PHONY: help setup demo up test lint fix faults bench screenshots revision
