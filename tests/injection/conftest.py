"""Property tests of this room run without a deadline: on a busy machine a first call may take any time."""

from __future__ import annotations

import pytest
from helpers import tiny_unets as tiny_unets_module
from hypothesis import settings

settings.register_profile("likeness", deadline=None)
settings.load_profile("likeness")


@pytest.fixture(scope="session")
def tiny():
    """The module `tiny_unets.py`: diffusers UNets of many layouts, and what fits them."""
    return tiny_unets_module
