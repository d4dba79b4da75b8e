# make demo | test | lint | evaluate | compare | bench | bench-gpu | image | container-test | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= uit-vnu
DOCKER ?= docker
BUILD_ARGS ?=
DATA ?= ../shared/data
MINUTES ?= 5
HELD_OUT := btcv_0009 btcv_0026 btcv_0039

.PHONY: demo test lint evaluate compare bench bench-gpu image container-test clean

demo: $(VENV)/.app  ## segment a synthetic CT and print what was found
	$(BIN)/python tests/phantom.py inputs/phantom_0000.nii.gz
	PYTHON=$(BIN)/python sh predict.sh inputs outputs
	$(BIN)/python tests/run_log_table.py outputs/run_log.jsonl

test: $(VENV)/.tests  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.tests  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	sh -n predict.sh
	$(BIN)/hadolint Dockerfile

evaluate: $(VENV)/.tests  ## score every bundled model on the held-out cases of DATA; reports/MODEL/report.html
	$(BIN)/python $(DATA)/unpack.py cache/held_out $(HELD_OUT)
	set -e; for model in $(notdir $(basename $(wildcard weights/*.md))); do \
	    $(BIN)/python -m app cache/held_out/imagesTr reports/$$model/masks --model $$model; \
	    $(BIN)/python -m evaluation accuracy reports/$$model/masks cache/held_out/labelsTr \
	        --images cache/held_out/imagesTr --out reports/$$model; \
	done

compare: $(VENV)/.tests  ## the paper's comparison on DATA: each network trained for MINUTES, scored on the held-out cases
	$(BIN)/python $(DATA)/unpack.py cache/data
	$(BIN)/python -m training compare runs/compare --data cache/data --fold 0 --minutes $(MINUTES)

bench: $(VENV)/.tests  ## start-up, reading and writing, inference on a CPU, memory, growth; reports/bench
	$(BIN)/python -m benchmarks reports/bench $(if $(SCAN),--scan $(SCAN))

bench-gpu: $(VENV)/.tests  ## the same for an NVIDIA GPU; reports/bench
	$(BIN)/python -m benchmarks.gpu reports/bench $(if $(SCAN),--scan $(SCAN))

image:  ## the container image; BUILD_ARGS="--build-arg TORCH_VERSION=2.13.0 --build-arg TORCH_INDEX_URL=" for one without CUDA
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_ARGS) -t $(IMAGE) .

container-test: $(VENV)/.app image  ## run the image as the organisers do, and locked down; compare the masks
	DOCKER=$(DOCKER) IMAGE=$(IMAGE) PYTHON=$(BIN)/python bash tests/container.sh

$(VENV)/.app: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.tests: $(VENV)/.app tests/requirements.txt training/requirements*.txt evaluation/requirements.txt
	$(BIN)/python -m pip install -q -r tests/requirements.txt
	touch $@

clean:  ## everything that was made here, but not the inputs
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
