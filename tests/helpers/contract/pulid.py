"""PuLID v1; what it finds beside its file lies in the small world."""

from __future__ import annotations

from ..pulid import adapter
from . import Case

CASE = Case("PuLID for SDXL", adapter)
