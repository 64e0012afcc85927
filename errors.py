"""The one exception this pack raises for a user's mistake."""

from __future__ import annotations


class LikenessError(ValueError):
    """Something the user can mend. The message is one sentence: which input, what is wrong, what to do next."""
