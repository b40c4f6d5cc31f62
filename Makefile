# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. The first one that is run makes the virtual environment.

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= demo-output
MODEL ?= abdomen-ct
BUDGET ?= 10

ENVIRONMENT := $(VENV)/installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help environment demo test lint bench campaign

help:
	@echo "make demo                     train on a phantom's CT, segment its MR, show what SRC, SM and SAM bring"
	@echo "make demo INPUT=scan.nii.gz   segment a scan with a shipped network"
	@echo "make test                     check the style and run the fast tests"
	@echo "make lint                     check the style alone"
	@echo "make bench                    measure the speed, also as on a processor with AVX2 alone"
	@echo "make campaign BUDGET=20       damage inputs, disturb runs, load the worker, for 20 minutes"
	@echo "make environment              only make the virtual environment"
	@echo
	@echo "PYTHON=$(PYTHON)  VENV=$(VENV)  OUTPUT=$(OUTPUT)  MODEL=$(MODEL)"

environment: $(ENVIRONMENT)

# Made once, and brought up to date when what it depends on has changed. Without build isolation
# pip needs no network where all is installed already.
$(ENVIRONMENT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, $(PYTHON) is not; name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Setting up the virtual environment $(VENV): once, some minutes, several GB with PyTorch."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=77"
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[test]"
	@touch $@

demo: $(ENVIRONMENT)
ifdef INPUT
	@echo "Segmenting $(INPUT) with $(MODEL); the labels go to $(OUTPUT)/."
	$(BIN)/srcsm segment "$(INPUT)" --model "$(MODEL)" --format .seg.nrrd -o "$(OUTPUT)/"
else
	@echo "The demonstration: about six minutes; the results go to $(OUTPUT)/."
	$(BIN)/srcsm demo -o "$(OUTPUT)"
endif

test: lint
	@echo "Running the fast tests."
	$(BIN)/python -m pytest

lint: $(ENVIRONMENT)
	@echo "Checking the style."
	$(BIN)/ruff check
	$(BIN)/ruff format --check

campaign: $(ENVIRONMENT)
	OMP_NUM_THREADS=1 PYTHONPATH=Testing/helpers $(BIN)/python Testing/campaign --budget $(BUDGET)

bench: $(ENVIRONMENT)
	$(BIN)/python -m srcsm_training.benchmarks --avx2
