# LLaVA-IAL. Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv and installs what it needs; finished steps are reused.

PYTHON ?= python3.11
SEED ?= 7
PRESET ?= short
SERVE ?= 1
PORT ?= 7860

BIN := .venv/bin
READY := .venv/.ready
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo chain test test-slow lint format bench clean

# Tiny models on few cores: one thread a process is ten times faster than many. Read before torch is imported.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False

help:  ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## make .venv and install the project into it
# Two installations at once into one folder break each other; this lock ends with whoever holds it.
	@mkdir -p .venv
	@exec 9< .venv; ! command -v flock >/dev/null || flock --nonblock 9 || { echo "another make installs into .venv: waiting for it"; flock 9; }; \
	$(MAKE) --question $(READY) || $(MAKE) --no-print-directory $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "error: no C++ compiler, which DeepSpeed needs: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "error: no Python.h for $(PYTHON), which DeepSpeed needs: apt-get install python3-dev (Debian, Ubuntu) or dnf install python3-devel (Fedora)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
# pip takes a package for installed whose installation was killed before its commands were made; it has no INSTALLER.
	@for package in .venv/lib/python*/site-packages/*.dist-info; do [ -e "$$package/INSTALLER" ] || rm -rf "$$package"; done
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@PATH="$(CURDIR)/$(BIN):$$PATH" DS_ACCELERATOR=cpu $(BIN)/python -c 'from llava_ial.training.deepspeed_start import load_cpu_communication as load; load()'
	touch $@

demo: setup  ## everything on an invented town, then the chat (SEED=7 PRESET=short|long PORT=7860 SERVE=0 stops before it)
	@PATH="$(CURDIR)/$(BIN):$$PATH" SEED=$(SEED) PRESET=$(PRESET) SERVE=$(SERVE) PORT=$(PORT) bash train/demo.sh

chain: setup  ## the same commands on a few real photos, learned by heart: is everything connected?
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash train/chain.sh

test: setup  ## the fast tests (offline, CPU)
	$(BIN)/python -m pytest -q -n 2 -m 'not slow and not gpu and not network'

test-slow: setup  ## the slow tests: launchers, DeepSpeed, browser
	$(BIN)/python -m pytest -q -m 'slow and not gpu and not network'

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## ruff, changing files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Those that need this machine alone. The others want a map, a data set or a GPU: python -m benchmarks.NAME --help.
bench: setup  ## measure speed on this machine; writes JSON into benchmarks/results
	@for name in chunked_loss evaluate precision serve stage1 stage2 toy_city; do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name; done

clean:  ## remove what make made (the virtual environment and runs/)
	rm -rf .venv runs
