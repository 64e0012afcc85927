"""Property tests of this room run without a deadline: on a busy machine a first call may take any time."""

from __future__ import annotations

import pytest
from helpers import official as official_module
from hypothesis import settings

settings.register_profile("likeness", deadline=None)
settings.load_profile("likeness")


@pytest.fixture(scope="session")
def official():
    """The module `official.py`: IP-Adapter files with random weights in the official layouts."""
    return official_module
