"""Files that a crash or a full disk must not cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside this one, which then takes its place: whole or not at all.

    What was there before stays where writing fails, with whatever `write` raises.
    """
    partial = file.with_name(f".{file.name}.part")
    try:
        write(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
