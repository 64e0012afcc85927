"""Reading a TOML file as people's editors write it."""

from __future__ import annotations

import codecs
import re
import stat
import sys
from pathlib import Path
from typing import Any

from ..errors import LikenessError

_LARGEST = 1 << 20  # bytes
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_DRIVE = re.compile(r'"[A-Za-z]:\\(?!\\)')  # C:\ in double quotes, where a backslash begins an escape
_ESCAPED = re.compile(r"[\x00-\x1f\x7f]")
_PATHS = frozenset(
    {"base", "output", "person", "style", "person_word", "style_word", "start_from", "parser", "recogniser", "faces"}
    | {"second", "third", "second_word", "third_word", "class_folder"}
)


def read_toml(file: Path) -> dict[str, Any]:
    """What a TOML file holds, with or without a byte order mark. Raises LikenessError with one sentence.

    Paths as Windows writes them are explained: the reader's own words are `Invalid hex value`, or none where
    `C:\\temp` becomes a path with a tab in it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = _text(file)
    if found := _DRIVE.search(text):
        raise _windows_path(file, text.count("\n", 0, found.start()) + 1)
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"line (\d+)", str(error))
        if line and "\\" in text.split("\n")[int(line[1]) - 1]:
            raise _windows_path(file, int(line[1])) from error
        raise LikenessError(f"{str(file)!r} cannot be read as TOML ({error}): correct it.") from error
    if entry := _damaged_path(content):
        raise LikenessError(
            f"The entry {entry!r} in {str(file)!r} holds a tab, a line break or the like, which is what a backslash "
            "in double quotes means: write the path in single quotes, or with /."
        )
    return content


def _text(file: Path) -> str:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise LikenessError(f"{str(file)!r} is not a file: name a TOML file.")
        if found.st_size > _LARGEST:
            raise LikenessError(f"{str(file)!r} has {found.st_size} bytes, as no configuration has: name a TOML file.")
        data = file.read_bytes()
        encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
        return data.decode(encoding).replace("\r\n", "\n")
    except FileNotFoundError as error:
        raise LikenessError(f"There is no configuration file {str(file)!r}: write one, or check its name.") from error
    except UnicodeDecodeError as error:
        raise LikenessError(f"{str(file)!r} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    except OSError as error:
        raise LikenessError(f"{str(file)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _windows_path(file: Path, line: int) -> LikenessError:
    return LikenessError(
        f"Line {line} of {str(file)!r} holds a backslash in double quotes, where it begins an escape: write Windows "
        "paths in single quotes, as in 'C:\\Users\\anna', or with /."
    )


def _damaged_path(content: dict[str, Any], above: str = "") -> str:
    """The first entry that is a path with a control character in it, or ''."""
    for key, value in content.items():
        if isinstance(value, dict):
            if found := _damaged_path(value, f"{above}{key}."):
                return found
        elif key in _PATHS and isinstance(value, str) and _ESCAPED.search(value):
            return f"{above}{key}"
    return ""
