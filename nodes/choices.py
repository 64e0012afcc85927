"""Combos from enumerations. The host does not check what a workflow file puts into a combo, so we do."""

from __future__ import annotations

import math
from enum import Enum
from typing import TypeVar

from ..errors import LikenessError

E = TypeVar("E", bound=Enum)


def choices(kind: type[Enum]) -> list[str]:
    """What an artist can choose, in order of definition."""
    return [str(item.value) for item in kind]


def member(kind: type[E], value: str, name: str) -> E:
    """The choice with this value; LikenessError naming the input when there is none."""
    try:
        return kind(value)
    except ValueError:
        raise LikenessError(f"'{value}' is no choice for {name}: choose one of {', '.join(choices(kind))}.") from None


def finite(**numbers: float) -> None:
    """LikenessError naming the first input that is no number. Widgets give none, but linked inputs may."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise LikenessError(f"The input {name} is {value}, which is no number: give one such as 1.0.")
