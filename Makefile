# Everything a checkout needs, in one place. Each target does its own set-up.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

# What ComfyUI brings to an artist's environment, and the pack therefore never asks for. The trio is consistent: a newer
# torch with the last torchaudio breaks `import transformers`.
HOST_BRINGS := torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 transformers
COMFYUI_PATH ?= $(firstword $(wildcard .comfyui/ComfyUI $(HOME)/comfy/ComfyUI))
COMFYUI_VERSION ?= 0.3.64

.PHONY: setup test demo comfyui bench lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.txt Makefile $(wildcard $(COMFYUI_PATH)/requirements.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(HOST_BRINGS) -e ".[test,train]" \
	    $(if $(COMFYUI_PATH),-r $(COMFYUI_PATH)/requirements.txt)
	$(BIN)/python -m pip install --quiet --no-deps facenet-pytorch
	$(BIN)/python -c "import torch, torchvision, torchaudio, transformers"
	touch $@

test: setup
	$(BIN)/python -m pytest

# The real host, for the tests and `workflows/_build.py`: comfy-cli clones it into its default workspace (~/comfy/ComfyUI)
# if none is there. Its requirements are installed by `setup`, in one resolution with the torch trio.
comfyui:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(wildcard $(COMFYUI_PATH)/main.py),)
	$(BIN)/python -m pip install --quiet comfy-cli
	$(BIN)/comfy --skip-prompt install --version $(COMFYUI_VERSION) --cpu \
	    --skip-manager --skip-torch-or-directml --skip-requirement
endif
	$(MAKE) setup

# Zero downloads: portraits of a drawn person, with a report. `PHOTOS=folder` takes other photos of the miniature world,
# `HOST=comfyui` makes the pictures in the real ComfyUI.
demo: setup
	$(BIN)/python -m likeness.miniature.demo --out demo $(if $(PHOTOS),--photos $(PHOTOS)) \
	    $(if $(filter comfyui,$(HOST)),--comfyui)

bench: setup
	$(BIN)/python benchmarks/overhead.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
