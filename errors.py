"""The one exception this pack raises for a user's mistake."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"\s*[\r\n\u2028\u2029]+\s*")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class LikenessError(ValueError):
    """Something the user can mend. The message is one sentence: which input, what is wrong, what to do next.

    Whatever name or path stands in it, it is one line that every log, terminal and reply can carry: a lone surrogate
    from a request or a folder would otherwise raise where the message is logged, far from here.
    """

    def __init__(self, message: str = "") -> None:
        line = _BREAKS.sub(" ", str(message))
        super().__init__(_UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], line))
