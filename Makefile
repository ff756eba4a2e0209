# Two commands on a fresh machine with Python 3.11 or 3.12 and make: `make demo` and `make test`.
# Everything is installed inside .venv from requirements.lock; stamp files make a second run start at once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first interpreter that really runs and is 3.12 or 3.11 (a shim on PATH may not run); PYTHON=… overrides.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_PIP := UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} $(UV) pip install -q --python $(BIN)/python
# One thread: on small shared machines the spinning barriers of two are many times slower.
export OMP_NUM_THREADS ?= 1
PYTEST_WORKERS ?= 2
SAAS_WORKERS ?= 3

.PHONY: help setup demo saas test check bench soak soak-saas soak-workers toy-model tiny-vae lock
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed $(VENV)/.libraries ## .venv with everything in it, and the system libraries

demo: setup ## a prompt in, an MP4 out, through the real InvokeAI graph engine
	@$(BIN)/invokeai-video demo $(DEMO_ARGS)

saas: setup ## the server for many users, on an embedded database; prints the first administrator
	@$(BIN)/invokeai-saas serve

test: setup $(VENV)/.chromium ## all tests, under an hour on 2 cores
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --ignore tests/browser --ignore tests/saas $(TEST_ARGS)
	@# Apart: the SaaS closes nodes and swaps services of InvokeAI in its process, where the pack's tests keep an engine running.
	@# One more than processors: half of the time these wait for leases, letters and processes that were killed.
	@$(BIN)/python -m pytest -n $(SAAS_WORKERS) --dist loadgroup tests/saas $(TEST_ARGS)
	@# Apart: a browser is slow beside other work, and its driver keeps an event loop running that other tests trip over.
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup tests/browser $(TEST_ARGS)

check: $(VENV)/.installed ## lint, types and architecture, under 60 seconds
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:xdist tests/architecture

bench: setup $(VENV)/.chromium ## every benchmark, each prints its ratio or difference
	@failed=0; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script" || failed=1; done; exit $$failed

soak: setup ## the long tests: the toy model judged on 2,000 prompts, and what `make test` leaves out
	@SOAK=1 $(BIN)/python -m pytest -p no:xdist -m soak --ignore tests/saas --ignore tests/browser/test_workers.py tests
	@$(BIN)/python -m training.toy_model.evaluate $(SOAK_ARGS)

soak-saas: setup ## the long tests of the SaaS: 100,000 transactions, 10,000 queue items of 4 workers, 500 MB up and down, 100 kills, the books
	@SAAS_SOAK_TRANSACTIONS=100000 SAAS_SOAK_ITEMS=10000 SAAS_SOAK_MEGABYTES=500 SAAS_SOAK_KILLS=100 \
		SAAS_SOAK_BOOKS=2000 SAAS_SOAK_ENDINGS=1000 SAAS_SOAK_HOLDS=10000 SAAS_SOAK_LIVES=500 SAAS_SOAK_GRAPHS=3000 $(BIN)/python -m pytest -p no:xdist --timeout 0 -s \
		tests/saas/test_soak.py tests/saas/test_lease.py tests/saas/test_fairness.py tests/saas/test_storage_stores.py tests/saas/test_kill_postgres.py \
		tests/saas/test_kill_migration.py tests/saas/test_import_runs.py tests/saas/test_storage_crashes.py \
		tests/saas/test_live_s3.py tests/saas/test_kill_web.py tests/saas/test_credits_model.py tests/saas/test_credits_endings.py \
		tests/saas/test_credits_overspend.py tests/saas/test_billing_soak.py tests/saas/test_plans_properties.py

soak-workers: setup ## the long tests of GPU workers: 1,000 kills, 200 stops, 4 web and 4 worker processes with 2,000 items, redeliveries
	@SOAK=1 $(BIN)/python -m pytest -p no:xdist --timeout 0 tests/browser/test_workers.py
	@SOAK=1 SAAS_SOAK_WORKER_KILLS=1000 SAAS_SOAK_WORKER_STOPS=200 SAAS_SOAK_REDELIVERIES=100 SAAS_SOAK_CLAIMS=500 SAAS_SOAK_EVENTS=1 \
		SAAS_SOAK_FITS=500 SAAS_SOAK_RACERS=500 SAAS_SOAK_FETCH_KILLS=100 $(BIN)/python -m pytest -p no:xdist --timeout 0 -s \
		tests/saas/test_worker_kills.py tests/saas/test_wakeups_claims.py tests/saas/test_wakeups_worker.py tests/saas/test_events_live.py tests/saas/test_claims_fit.py \
		tests/saas/test_model_room.py tests/saas/test_wakeups_transports.py

toy-model: setup ## train the toy model again, from scratch on the CPU with a fixed seed
	@$(BIN)/python -m training.toy_model.train $(TOY_ARGS)

tiny-vae: setup ## train the tiny video VAE of the tests again, about 20 minutes on one core
	@$(BIN)/python -m training.tiny_video_vae.train $(VAE_ARGS)

lock: $(VENV)/.python ## resolve requirements.lock anew
	@$(UV) pip compile pyproject.toml --extra saas --group dev --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-header --annotation-style=line --no-emit-index-url --no-emit-find-links -q -o requirements.lock

$(VENV)/.python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: expected Python 3.11 or 3.12, found none on PATH. Install one, or name it: make PYTHON=/path/to/python3.12 …"; exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("error: expected Python 3.11 or 3.12, got %d.%d from $(PYTHON); nearest: %s" % (v + ("3.11" if v < (3, 11) else "3.12",)))'
	@echo "setup: $(VENV) with $$($(PYTHON) --version)"
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "error: $(PYTHON) has no venv module. On Debian or Ubuntu: apt-get update && apt-get install -y python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv==$(UV_VERSION)"
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml $(VENV)/.python patches/invokeai_video_startup.pth
	@echo "setup: installing requirements.lock (some GB the first time)"
	@$(UV_PIP) --require-hashes -r requirements.lock
	@$(UV_PIP) --no-deps --no-build-isolation -e .
	@touch $@

# $(1) names apt packages, $(2) is what the person reads.
define apt_install
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "setup: apt-get install $(1)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; \
	else \
		echo "error: $(2) missing. On Debian or Ubuntu, as root: apt-get update && apt-get install -y $(1)"; exit 1; fi
endef

$(VENV)/.libraries: $(VENV)/.installed
	@if ! $(BIN)/python -c 'import cv2' >/dev/null 2>&1; then \
		$(call apt_install,libgl1 libglib2.0-0,libGL or glib (InvokeAI reads images through them)); fi
	@$(BIN)/python -c 'import cv2'
	@touch $@

$(VENV)/.chromium: $(VENV)/.installed
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		$(call apt_install,chromium,Chromium (the browser tests drive it)); fi
	@touch $@
