"""Property tests of this room run without a deadline: on a busy machine a first call may take any time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("likeness", deadline=None)
settings.load_profile("likeness")

# Loaded here, so that test modules can name its layouts in their parameters.
tiny_unets_module = sys.modules["likeness_comfyui"].load_module(
    "likeness_tiny_unets", Path(__file__).with_name("tiny_unets.py")
)


@pytest.fixture(scope="session")
def tiny():
    """The module `tiny_unets.py`: diffusers UNets of many layouts, and what fits them."""
    return tiny_unets_module
