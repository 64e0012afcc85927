"""A whole StoryMaker file."""

from __future__ import annotations

from .. import storymaker
from . import Case

CASE = Case("StoryMaker", storymaker.weights, reads_clip=True)
