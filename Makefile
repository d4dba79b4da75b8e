PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q
TORCH ?= torch>=2.7,<2.14
IMAGE ?= uit-vnu
DOCKER ?= docker
BUILD_ARGS ?=
DATA ?= ../shared/data
MINUTES ?= 5
# Two sets of DATA that no bundled model was trained on. The first has expert labels and chose the weights; the second has
# labels on which two public networks agree, good for ranking two models and not for quoting as accuracy.
QUICK := btcv_0009 btcv_0026 btcv_0039
SECOND := hcc015_a hcc015_b rad2022_a rad2022_b pancb001 tcga_ay4070a
# Separate slices with expert labels of 12 patients of DATA that no bundled model was trained on.
SLICES := nihpanc_0008 nihpanc_0014 nihpanc_0020 nihpanc_0027 nihpanc_0033 nihpanc_0039 nihpanc_0045 nihpanc_0055 \
    curvas_10004 curvas_10010 kits_10037 msdspleen_14

MODELS = $(notdir $(basename $(wildcard weights/*.md)))

.PHONY: help demo test lint fuzz soak wheel audit lock evaluate evaluate-hard confidence compare train-fast train-paper bench bench-gpu image container-test clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.app  ## segment a synthetic CT and print its organ volumes
	$(BIN)/python -m phantom inputs/phantom_0000.nii.gz
	PYTHON=$(BIN)/python sh predict.sh inputs outputs

test: $(VENV)/.dev  ## the whole test suite, a process of one thread per processor
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	sh -n predict.sh
	$(BIN)/hadolint Dockerfile

fuzz: $(VENV)/.dev  ## 10,000 NIfTI files and 1,000 + 2,000 DICOM series through the readers, 100 files through the command line
	$(BIN)/python -m tests.fuzz

soak: $(VENV)/.dev  ## kill -9, full disks, two runs at once, 2,000 files: an hour
	$(BIN)/python -m tests.soak

wheel: $(VENV)/.dev  ## the Python distribution, in dist/
	$(BIN)/python -m build --wheel

audit: $(VENV)/.app  ## known vulnerabilities of the image's libraries, and their list as CycloneDX; reports/sbom.json
	$(PIP) pip-audit cyclonedx-bom
	mkdir -p reports
	$(BIN)/cyclonedx-py requirements requirements.txt -o reports/sbom.json
	$(BIN)/pip-audit -r requirements.txt --require-hashes --disable-pip

# Left out: torch, because users choose their own build, and packages that only OpenVINO's converters import.
# One lock file serves both platforms (the oldest with OpenVINO wheels), so both must resolve identically.
LEFT_OUT := torch torchvision openvino-telemetry
PLATFORMS := aarch64-manylinux_2_35 x86_64-manylinux_2_28
lock: $(VENV)/.dev  ## resolve the pinned requirements from pyproject.toml, for x86-64 and arm64, without torch
	$(PIP) uv
	printf "%s; sys_platform == 'never'\n" $(LEFT_OUT) > $(VENV)/left-out.txt
	set -e; for file in "requirements.txt --extra all" "requirements-dev.txt --extra dev"; do set -- $$file; lock=$$1; shift; \
	    for platform in $(PLATFORMS); do $(BIN)/uv pip compile pyproject.toml "$$@" -q --upgrade --python-version 3.11 \
	        --python-platform $$platform --generate-hashes --no-annotate --no-header \
	        --overrides $(VENV)/left-out.txt -o $(VENV)/lock-$$platform.txt; done; \
	    cmp $(VENV)/lock-*.txt; \
	    { echo "# Made by 'make lock' from pyproject.toml. For a GPU, and for training, install torch first. Then"; \
	        echo "# pip install --no-deps --require-hashes -r $$lock"; cat $(VENV)/lock-$$platform.txt; } > $$lock; done

evaluate: $(VENV)/.dev  ## score every bundled model on three sets of DATA; reports/MODEL/quick, second and slices
	$(BIN)/python $(DATA)/unpack.py cache/quick $(QUICK)
	$(BIN)/python $(DATA)/unpack.py cache/second $(SECOND)
	$(BIN)/python $(DATA)/unpack.py cache/slices $(SLICES)
	set -e; for model in $(MODELS); do \
	    for set in quick second; do \
	        $(BIN)/python -m app cache/$$set/imagesTr reports/$$model/$$set/masks --model $$model; \
	        $(BIN)/python -m evaluation accuracy reports/$$model/$$set/masks cache/$$set/labelsTr \
	            --images cache/$$set/imagesTr --out reports/$$model/$$set; \
	    done; \
	    $(BIN)/python -m evaluation slices cache/slices --model $$model --out reports/$$model/slices; \
	done

evaluate-hard: $(VENV)/.dev  ## score every bundled model on coarser, thicker, noisier and fainter copies of three scans; reports/hard
	$(BIN)/python $(DATA)/unpack.py cache/quick $(QUICK)
	$(BIN)/python -m evaluation hard cache/quick --out reports/hard

confidence: $(VENV)/.dev  ## does the network's confidence predict its DSC? On cases of DATA it was not trained on
	$(BIN)/python $(DATA)/unpack.py cache/unseen $(QUICK) $(SECOND)
	$(BIN)/python -m app cache/unseen/imagesTr reports/confidence/masks --model fast
	$(BIN)/python -m evaluation confidence reports/confidence/masks cache/unseen/labelsTr --out reports/confidence

.PHONY: figures release-check
figures: $(VENV)/.dev  ## print figures into the documents: of make evaluate and evaluate-hard, and of benchmarks/*.json
	set -e; for scores in $(wildcard reports/*/*/scores.csv); do \
	    report=$${scores%/scores.csv}; $(BIN)/python -m evaluation record $${report##*/} $$report; done
	test ! -f reports/hard/hard.json || $(BIN)/python -m evaluation record hard reports/hard
	$(BIN)/python -m benchmarks.published

release-check: $(VENV)/.dev  ## before a tag: version, changelog, image label, weights' checksums, figures
	$(BIN)/python -m tests.release

compare: $(VENV)/.dev  ## the paper's comparison on DATA: each network trained for MINUTES, scored on the held-out cases
	$(BIN)/python $(DATA)/unpack.py cache/data
	$(BIN)/python -m training compare runs/compare --data cache/data --fold 0 --minutes $(MINUTES)

train-fast train-paper: train-%: $(VENV)/.dev  ## train a bundled model on DATA in spare CPU time; again to resume
	test -d cache/data || $(BIN)/python $(DATA)/unpack.py cache/data
	PYTHON=$(BIN)/python sh training/bundled.sh $* cache/data $(QUICK) $(SECOND) $(SLICES)

bench: $(VENV)/.dev  ## start-up, reading and writing, inference on a CPU, memory, growth; reports/bench
	$(BIN)/python -m benchmarks reports/bench $(if $(SCAN),--scan $(SCAN))
	$(BIN)/python -m benchmarks.outputs
	$(BIN)/python -m benchmarks.cluster reports/bench

bench-gpu: $(VENV)/.dev  ## the same for an NVIDIA GPU; reports/bench
	$(BIN)/python -m benchmarks.gpu reports/bench $(if $(SCAN),--scan $(SCAN))

image:  ## the container image; for one without CUDA see README.md
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_ARGS) -t $(IMAGE) .

container-test: $(VENV)/.app image  ## run the image as the organisers do, and locked down; compare the masks
	DOCKER=$(DOCKER) IMAGE=$(IMAGE) PYTHON=$(BIN)/python bash tests/container.sh

$(VENV)/.app: requirements.txt app/results/page/package-lock.json
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r requirements.txt
	$(BIN)/python app/results/page/fetch.py
	touch $@

# torchvision's version follows torch's; it is for `make compare`.
$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(PIP) "$(TORCH)"
	$(PIP) --no-deps --require-hashes -r requirements-dev.txt
	$(PIP) "$$($(BIN)/python -m pip freeze | grep -i '^torch==')" torchvision
	touch $@

clean:  ## remove everything that was made here, but not the inputs
	rm -rf $(VENV) outputs dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
