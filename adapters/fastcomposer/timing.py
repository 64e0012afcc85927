"""Delayed subject conditioning: for how many steps of a run the text alone is read."""

from __future__ import annotations

_EXACT = 10  # decimals to which a user's number is meant


def text_only_steps(alpha: float, steps: int) -> int:
    """How many leading steps i have i <= (1 - alpha) * steps, which the official code counts in double precision.

    The border counts, so that even alpha 1 leaves one step to the text; and 0.8 of 50 is 10 steps, but 0.7 is 16.
    """
    return min(int((1 - alpha) * steps) + 1, steps)


def alpha_of(start: float) -> float:
    """alpha of the share of steps before it, as a user would have written it: 0.8 of 0.2, and not a digit more."""
    return round(1 - start, _EXACT)
