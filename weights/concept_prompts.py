"""What a merge of concepts asks its text encoder: ordinary captions, and how prompts speak of each concept."""

from __future__ import annotations

from itertools import product

PHOTO, STYLE = "photo of a", "painting in the style of"
_WHO = ("a man", "a woman", "two friends", "an old couple", "a dog", "a cat", "a child", "a crowd of people")
_DOES = ("in a garden", "beside a river", "at a market", "on a mountain path", "in front of a brick house")
_HOW = (
    "on a sunny morning",
    "in heavy rain",
    "at night under street lights",
    "with flowers and a wooden table",
    "while snow covers the road",
)


def ordinary_captions() -> list[str]:
    """200 sentences about anything, which a merge leaves as they were."""
    return [" ".join(parts) for parts in product(_WHO, _DOES, _HOW)]


def constraint_prompts(phrase: str, style: bool) -> list[tuple[str, str]]:
    """(prompt, prefix whose tokens constrain nothing) of a concept that prompts call `phrase`, as in "<new1> cat"."""
    prefix = STYLE if style else PHOTO
    return [(phrase, ""), (f"{prefix} {phrase}", prefix)]
