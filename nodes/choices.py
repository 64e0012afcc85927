"""What a graph chooses: combos from enumerations, names of files and folders, numbers. A workflow file may hold
anything, and not every host checks it, so we do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from inspect import Parameter, Signature
from typing import Any, TypeVar

from ..errors import LikenessError

E = TypeVar("E", bound=Enum)
N = TypeVar("N", bound=type)
_BROKEN = re.compile("[\0\ud800-\udfff]")


def choices(kind: type[Enum]) -> list[str]:
    """What a user can choose, in order of definition."""
    return [str(item.value) for item in kind]


NOT_INSTALLED = " (not installed)"  # ends an entry of a list whose files are not here


def usable_first(entries: Iterable[str], find: Callable[[str], object]) -> list[str]:
    """The entries in their order, those that `find` does not find behind the others and marked: the first is what new
    nodes begin with."""
    usable, missing = [], []
    for entry in entries:
        try:
            find(entry)
        except (LikenessError, OSError):
            missing.append(f"{entry}{NOT_INSTALLED}")
        else:
            usable.append(entry)
    return [*usable, *missing]


def unmarked(choice: str) -> str:
    """The entry of a list, however it was marked when the graph was saved."""
    return choice.removesuffix(NOT_INSTALLED)


def member(kind: type[E], value: str, name: str) -> E:
    """The choice with this value, in capitals or not; LikenessError naming the input when there is none."""
    return list(kind)[choices(kind).index(one_of(choices(kind), value, name))]


def one_of(options: Sequence[str], value: Any, name: str) -> str:
    """The choice with this value, in capitals or not; LikenessError naming the input when there is none."""
    alike = [option for option in options if option.casefold() == str(value).casefold()]
    if alike:
        return value if value in alike else alike[0]
    raise LikenessError(f"{value!r} is not a choice for {name}: choose one of {', '.join(options)}.")


def in_order(start_at: float, end_at: float) -> None:
    """LikenessError for a window that ends before it starts; one without length is a way to switch something off."""
    if start_at > end_at:
        raise LikenessError(f"start_at is {start_at:g} and end_at {end_at:g}: enter a start that is not after the end.")


def finite(**numbers: float) -> None:
    """LikenessError naming the first input that is not a finite number. Widgets give none, but linked inputs may."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise LikenessError(f"The input {name} is {value!r}: enter a number such as 1.0.")


def readable(**texts: str) -> None:
    """LikenessError naming the first text that no file and no tokenizer can hold: half a character, or NUL."""
    for name, value in texts.items():
        if broken := _BROKEN.search(value):
            raise LikenessError(f"The input {name} holds {broken[0]!r}, which is not a character: type the text again.")


def named(value: Any, name: str) -> str:
    """The name of a file or folder; LikenessError for whatever else a graph may hold in its place."""
    if not isinstance(value, str):
        raise LikenessError(f"The input {name} is {value!r}, not a name: choose an entry of the list.")
    return value


def must_exist(**finders: Callable[[str], Any]) -> Callable[[N], N]:
    """Class decorator: what these inputs name must be there before anything of the graph runs.

    `finders` raise the LikenessError that the user reads, at the node, when the graph is queued. Without this a newer
    host says "Value not in list" of a file that has gone, or of a choice in another pack's spelling, and an older one
    nothing until the node runs. A linked input has no value yet: it arrives as None, and `execute` finds out.
    """

    def validate_inputs(cls: type, **values: Any) -> bool | str:
        given = {name: value for name in finders if (value := values.get(name)) is not None}
        wrong = [_why_missing(name, value, finders[name]) for name, value in given.items()]
        return " ".join(filter(None, wrong)) or True

    inputs = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in finders]
    # The host hands over, and does not check itself, what the signature names.
    signature = Signature([Parameter("cls", Parameter.POSITIONAL_OR_KEYWORD), *inputs])
    validate_inputs.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]

    def decorate(node: N) -> N:
        node.validate_inputs = classmethod(validate_inputs)
        return node

    return decorate


def _why_missing(name: str, value: Any, find: Callable[[str], Any]) -> str | None:
    """What is wrong with the value of an input, in a sentence; None for nothing."""
    try:
        find(named(value, name))
    except LikenessError as error:
        return str(error)
    except OSError as error:  # a name too long for the file system, a folder that may not be read
        return f"The {name} {value!r} cannot be looked up ({error.strerror or error}): choose an entry of the list."
    return None
