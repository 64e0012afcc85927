"""The system of `tests/adapters/toy.py`, which uses every kind of effect."""

from __future__ import annotations

import sys

from . import Case

CASE = Case("Toy", sys.modules["likeness_toy"].weights)
