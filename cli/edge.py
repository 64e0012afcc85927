"""What every verb has in common: what is typed is checked before any work begins, and errors are one line."""

from __future__ import annotations

import errno
import importlib.metadata
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..device_errors import is_out_of_memory
from ..errors import LikenessError
from ..storage import check_folder, check_name

_LONGEST_PATH, _LONGEST_PART = 4000, 255  # bytes


class Verb(TyperCommand):
    """A command whose values are looked at before it runs; where the system refuses, it ends in a LikenessError."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the verb."""
        for parameter in self.params:
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            if fault := _fault(ctx.params.get(parameter.name or "")):
                raise typer.BadParameter(fault, ctx=ctx, param_hint=name)
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read what we print has left
                raise
            raise LikenessError(
                f"{str(error.filename or 'A file')!r} cannot be used ({error.strerror or error}): check the disk and "
                "the permissions, then run the same again."
            ) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise LikenessError("There is not enough memory: close other programs, or give fewer files.") from error


def _fault(value: Any) -> str:
    """What no verb can use, whatever it is for."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_fault, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number; enter one such as 1.0."
    if isinstance(value, Path):
        try:
            length = len(os.fsencode(value))
        except UnicodeEncodeError:
            return f"{str(value)!r} is not valid text."
        if length > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_PART for part in value.parts):
            return f"'{str(value)[:60]}…' is too long for a path."
        return f"{str(value)!r} contains a character that is not allowed in a path." if "\0" in str(value) else ""
    if isinstance(value, str) and any(_unprintable(letter) for letter in value):
        return f"{value[:60]!r} holds characters that cannot be shown or stored; type it again."
    return ""


def _unprintable(letter: str) -> bool:
    return (not letter.isprintable() and not letter.isspace()) or letter in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def check_new_file(file: Path, what: str) -> None:
    """Raise LikenessError unless a file can be made there, and nothing has the name."""
    check_name(file.name, what)
    check_folder(file.parent, what)
    if os.path.lexists(file):
        raise LikenessError(f"{what} {str(file)!r} exists already: choose another name.")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"likeness {importlib.metadata.version('likeness')}")
        raise typer.Exit


def likeness(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options of `likeness` itself."""
