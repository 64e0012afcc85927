"""PhotoVerse in the unofficial layout; its placeholder is the person, and CLIP has the width of the small world's."""

from __future__ import annotations

from ..photoverse import unofficial
from . import Case

CASE = Case(
    "PhotoVerse", unofficial, reads_clip=True, reads_faces=False,
    prompt="a photo of img in the rain", plain="a photo of person in the rain",
)  # fmt: skip
