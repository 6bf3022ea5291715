# make            what there is to do
# make demo       each of these two creates the environment first, if it is not there
# make test
#
# make help      the rest: tests against mmdet and other versions, checks, documentation
#
# VENV=/path      where the environment lives (default: .venv in the checkout)
# PYTHON=python3.12  which interpreter makes it

VENV ?= .venv
DEMO_DIR ?= work_dirs/demo
# processes for the tests, each with one thread: on few cores that is faster than the other way round
JOBS ?= 2
PYTEST_ARGS ?=
# sessions of noxfile.py that `make test-matrix` runs
ROWS ?= newest oldest_timm originals

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env demo test test-mmdet test-matrix lint format docs wheel clean

BIN := $(VENV)/bin
SOURCES := frskd_plugin tools configs tests scripts setup.py conftest.py noxfile.py docs/conf.py docs/_extensions docs/gallery_source
# this checkout first, whichever one the environment was made for
RUN := PYTHONPATH="$(CURDIR)"

help: ## Show this help
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done
	@echo "Settings: VENV=$(VENV) (the environment), PYTHON= (interpreter that makes it), DEMO_DIR=$(DEMO_DIR), JOBS=$(JOBS) and PYTEST_ARGS= (tests)"

env: ## Create the environment, or reuse a complete one
	@scripts/make_env.sh "$(VENV)"

demo: env ## Train a plain network and FRSKD on drawn images and compare them (about 6 minutes after set-up)
	$(RUN) "$(BIN)/python" tools/demo.py --work-dir "$(DEMO_DIR)"

test: env ## Run all tests, doctests included
	@$(RUN) JOBS="$(JOBS)" scripts/run_tests.sh "$(BIN)/python" $(PYTEST_ARGS)

test-mmdet: env ## Run the tests that need mmdet; builds mmcv with its operators once (5 to 30 minutes)
	@$(RUN) JOBS="$(JOBS)" scripts/test_mmdet.sh "$(BIN)/python" $(PYTEST_ARGS)

test-matrix: env ## Run the tests with other versions: newest, oldest timm, original OpenMMLab (ROWS= chooses)
	JOBS="$(JOBS)" "$(BIN)/nox" -s $(ROWS)

lint: env ## Check style (ruff), types (mypy), spelling and the directions of imports
	"$(BIN)/ruff" check $(SOURCES)
	"$(BIN)/ruff" format --check $(SOURCES)
	"$(BIN)/lint-imports" --no-logo
	"$(BIN)/codespell"
	"$(BIN)/mypy"

format: env ## Format the code and mend what ruff can mend
	"$(BIN)/ruff" check --fix $(SOURCES)
	"$(BIN)/ruff" format $(SOURCES)

docs: env ## Build the documentation into docs/_build/html
	$(RUN) "$(BIN)/python" -m sphinx -W --keep-going -b html docs docs/_build/html

wheel: env ## Build the wheel into dist/
	"$(BIN)/python" -m pip wheel . --no-deps --no-build-isolation --wheel-dir dist

clean: ## Remove what builds and checks leave behind (not the environment, not work_dirs/)
	rm -rf build dist docs/_build docs/gallery docs/sg_execution_times.rst frskd_plugin.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
