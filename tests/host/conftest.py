"""The real ComfyUI for tests: in this process (`recipes`) and as a server in its own (`server`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
comfyui = sys.modules["likeness_comfyui"]


@pytest.fixture(scope="session")
def recipes(host_nodes):
    """The module `recipes.py`: small models with random weights, sampling, golden weights in the host's layout."""
    return comfyui.load_module("likeness_host_recipes", HERE / "recipes.py")
