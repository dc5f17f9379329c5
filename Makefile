# What a person types. Owns the set-up (one stamp file per step, so that a second run is quick); the checks are in scripts/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
export VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
export CHROMIUM ?= /usr/bin/chromium

export PATH := $(abspath $(VENV))/bin:$(PATH)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 python -m pip install --quiet
client_sources := $(shell find client -name node_modules -prune -o -name test -prune -o -type f ! -name '*.md' -print)

.PHONY: help setup demo test lint unit e2e bench bench-check bench-setup mutants pictures client format coverage wheel lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.browser $(VENV)/.postgres client/node_modules/.installed backsync_asgi/static/backsync.js ## install all that the checks need
	@:

demo: $(VENV)/.demo backsync_asgi/static/backsync.js ## serve the examples on http://HOST:PORT/ (PORT=8000, HOST=127.0.0.1, data in examples.db or DATABASE_URL)
	@exec uvicorn examples.app:app --host $(HOST) --port $(PORT)

test: setup ## run all checks, as CI does
	@scripts/check
	@scripts/test

lint: $(VENV)/.dev client/node_modules/.installed ## ruff, mypy and the client's type check
	@scripts/check

unit: $(VENV)/.dev backsync_asgi/static/backsync.js ## the Python tests that need no browser
	pytest -m "not browser"

e2e: setup ## the tests in a real Chromium
	pytest -m browser

bench: bench-setup ## measure ours and the peers side by side, and draw the plots (about 20 minutes)
	python -m benchmarks --plots docs/benchmarks

bench-check: bench-setup ## compare the ratios of a short run with the targets
	python -m benchmarks --quick --check

bench-setup: $(VENV)/.demo benchmarks/.venv/.installed benchmarks/node_modules/.installed
	@python -c "from benchmarks.peers import build; build()"

mutants: $(VENV)/.dev ## plant faults in a copy of the package; the tests must notice each
	$(VENV)/bin/python scripts/mutants.py

pictures: setup ## take the pictures of README anew
	UPDATE_PICTURES=1 $(VENV)/bin/python -m pytest -q tests/e2e/test_chat.py -k picture

client: backsync_asgi/static/backsync.js ## build the browser client and run its tests
	npm --prefix client test

format: $(VENV)/.dev ## let ruff put the Python files in shape
	ruff check --fix-only --quiet . && ruff format .

coverage: setup ## the Python tests, with branch coverage
	pytest --cov --cov-report=term

wheel: $(VENV)/.dev backsync_asgi/static/backsync.js ## build wheel and sdist into dist/
	hatchling build -t sdist -t wheel

lock: ## pin the newest versions of all development packages in requirements-dev.txt
	scripts/lock $(PYTHON)

clean: ## remove what set-up and tools made, this checkout's virtual environment and the examples' data included
	rm -rf $(VENV) benchmarks/.venv benchmarks/node_modules benchmarks/build client/node_modules backsync_asgi/static dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis examples.db*

$(VENV)/bin/python:
	@scripts/venv $(PYTHON) $(VENV)

$(VENV)/.demo: pyproject.toml requirements-dev.txt | $(VENV)/bin/python
	@echo "Installing the server and what it needs into $(VENV)"
	@$(PIP) --constraint requirements-dev.txt --editable '.[server,sqlite,postgres]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the tools for development into $(VENV)"
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

client/node_modules/.installed: client/package.json client/package-lock.json
	@scripts/need-node
	@echo "Installing the client's packages"
	@npm --prefix client ci --no-audit --no-fund --no-update-notifier --no-progress --loglevel=error >/dev/null
	@touch $@

# The peers are never part of the development environment. sockjs-tornado and aiohttp's sockjs share a package's name.
benchmarks/.venv/.installed: benchmarks/requirements.txt benchmarks/requirements-tornado.txt requirements-dev.txt
	@echo "Installing the servers that the benchmarks compare with"
	@scripts/venv $(PYTHON) benchmarks/.venv
	@PIP_DISABLE_PIP_VERSION_CHECK=1 benchmarks/.venv/bin/python -m pip install --quiet --constraint requirements-dev.txt \
	  --requirement benchmarks/requirements.txt
	@PIP_DISABLE_PIP_VERSION_CHECK=1 benchmarks/.venv/bin/python -m pip install --quiet --no-deps --upgrade \
	  --target benchmarks/.venv/tornado --requirement benchmarks/requirements-tornado.txt
	@touch benchmarks/.venv/tornado/sockjs/__init__.py $@

benchmarks/node_modules/.installed: benchmarks/package.json benchmarks/package-lock.json
	@scripts/need-node
	@npm --prefix benchmarks ci --no-audit --no-fund --no-update-notifier --no-progress --loglevel=error >/dev/null
	@touch $@

backsync_asgi/static/backsync.js: client/node_modules/.installed $(client_sources)
	@npm --prefix client run --silent build
	@touch $@

# Playwright, a Python package, brings a Node of its own, which needs libatomic1 where a minimal Debian lacks it.
$(VENV)/.browser: $(VENV)/.dev
	@test -x "$(CHROMIUM)" || scripts/apt-install chromium
	@test -x "$(CHROMIUM)" || { echo "There is no browser at CHROMIUM=$(CHROMIUM)" >&2; exit 1; }
	@playwright --version &>/dev/null || scripts/apt-install libatomic1
	@touch $@

# The tests start a server of their own; what a package may start by itself is not used.
$(VENV)/.postgres: | $(VENV)/bin/python
	@compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || scripts/apt-install postgresql
	@touch $@
