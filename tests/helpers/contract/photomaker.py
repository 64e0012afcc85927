"""PhotoMaker v1, which looks at photos alone."""

from __future__ import annotations

from ..photomaker import weights
from . import Case

CASE = Case(
    "PhotoMaker", weights, reads_faces=False,
    prompt="a photo of a woman img in the rain", plain="a photo of a woman in the rain",
)  # fmt: skip
