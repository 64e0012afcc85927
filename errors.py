"""The one exception this pack raises for a user's mistake, and log lines that hold any name or path."""

from __future__ import annotations

import logging
import re
from pathlib import PurePath
from typing import Any

_BREAKS = re.compile(r"\s*[\r\n\u2028\u2029]+\s*")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class LikenessError(ValueError):
    """Something the user can correct. The message is one sentence: which input, what is wrong, what to do next.

    Whatever name or path stands in it, it is one line that every log, terminal and reply can carry: a lone surrogate
    from a request or a folder would otherwise raise where the message is logged, far from here.
    """

    __module__ = "builtins"  # ComfyUI shows the module before the sentence: for us the path of custom_nodes

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def __reduce__(self) -> Any:
        """Pickled by what makes it, because its class is not where its module says."""
        return (_again, (str(self),)) if type(self) is LikenessError else super().__reduce__()


def _again(message: str) -> LikenessError:
    return LikenessError(message)


def one_line(text: object) -> str:
    """`text` in one line that every log, terminal and reply can carry; what they cannot is escaped."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], _BREAKS.sub(" ", str(text)))


def logger(name: str) -> logging.Logger:
    """The logger of this name, into whose lines names and paths go as `one_line`: no name can forge a second line,
    command a terminal, or stop the log."""
    found = logging.getLogger(name)
    found.addFilter(_in_one_line)
    return found


def _in_one_line(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        said = (str, PurePath, BaseException)
        record.args = tuple(one_line(value) if isinstance(value, said) else value for value in record.args)
    return True
