"""The system of `tests/helpers/toy.py`, which uses every kind of effect."""

from __future__ import annotations

from helpers import toy

from . import Case

CASE = Case("Toy", toy.weights)
