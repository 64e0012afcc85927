"""Property tests of this room run without a deadline: on a busy machine a first call may take any time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("likeness", deadline=None)
settings.load_profile("likeness")
