# Everything runs in .venv, which is made when it is missing or pyproject.toml changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STUDY  ?= demo/study.toml
DEVICE ?= cpu
READY  := $(VENV)/.ready
# Without STUDY the demo is used, and written when it is not there.
DEMO   := $(filter demo/study.toml,$(STUDY))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo init features heads audit finetune shift report test test-slow lint bench-features bench-cuda bench-heads bench-shift bench-finetune bench-memory bench-views bench-machines calibration clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY)  ## Make .venv and install headrace with all it needs here

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headrace needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,dicom,onnx,parquet,zoo,dev]'
	@touch $@

demo: demo/study.toml features heads  ## Generated X-rays of two hospitals: write them, then features and heads

demo/study.toml: | $(READY)
	$(BIN)/headrace demo demo

init: $(READY)  ## Write study.toml for own images: make init DATA="hospital_a hospital_b"
	@test -n "$(DATA)" || { echo 'make init DATA="FOLDER FOLDER ...": the first is the source'; exit 2; }
	$(BIN)/headrace init $(DATA)

features: $(READY) $(DEMO)  ## Run the frozen backbones once over what the store lacks [STUDY=study.toml]
	$(BIN)/headrace features "$(STUDY)"

heads: $(READY) $(DEMO)  ## Train and compare heads from the store [STUDY=study.toml]
	$(BIN)/headrace heads "$(STUDY)"

audit: $(READY) $(DEMO)  ## Look for leaks and shortcuts before any number [STUDY=study.toml]
	$(BIN)/headrace audit "$(STUDY)"

shift: $(READY) $(DEMO)  ## Compare the source with each target: what is lost, why, what helps [STUDY=study.toml]
	$(BIN)/headrace shift "$(STUDY)"

finetune: $(READY) $(DEMO)  ## End-to-end and partial fine-tuning, for comparison [STUDY=study.toml]
	$(BIN)/headrace finetune "$(STUDY)"

report: $(READY) $(DEMO)  ## One HTML page of everything that the stages found [STUDY=study.toml]
	$(BIN)/headrace report "$(STUDY)"

# A file of tests a process, one thread each: together they use every core once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: $(READY)  ## The tests that CI runs
	$(PYTEST)

test-slow: $(READY)  ## All tests, also the ones that take minutes
	$(PYTEST) -m 'slow or not slow'

lint: $(READY)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-features: $(READY)  ## Images/s against a plain DataLoader loop and the bare network [DEVICE=cpu]
	$(BIN)/python -m tests.bench.features --device "$(DEVICE)"

bench-cuda: $(READY)  ## All that needs a GPU: correctness, rates, kill and resume
	$(BIN)/python -m tests.bench.cuda

bench-heads: features  ## Stage 2 against its goals and the best alternatives [STUDY=study.toml]
	$(BIN)/python -m tests.bench.heads --study "$(STUDY)"

bench-shift: $(READY)  ## Seconds of the steps of shift at 2,000 and 20,000 rows
	$(BIN)/python -m tests.bench.shift

bench-finetune: $(READY)  ## The last block from the store against the whole network [DEVICE=cpu]
	$(BIN)/python -m tests.bench.finetune --device "$(DEVICE)"

bench-memory: $(READY)  ## Peak memory and time of the commands on 100,000 images, 100 classes
	$(BIN)/python -m tests.bench.memory

bench-views: $(READY)  ## Views and layers against fine-tuning [STUDY=study.toml]
	$(BIN)/python -m tests.bench.views --study "$(STUDY)"

bench-machines: $(READY)  ## What features --ray costs an image; needs headrace[ray]
	$(BIN)/python -m tests.bench.machines

calibration: $(READY)  ## Which intervals hold the truth, which causes are named: 25 minutes of a core, on all cores
	$(BIN)/python -m tests.evaluation.coverage
	$(BIN)/python -m tests.shift.causes

clean:  ## Remove what was generated here, but no features and no results
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
