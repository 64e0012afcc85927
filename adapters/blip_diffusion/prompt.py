"""A prompt with the vectors of subjects among its words.

    "a {subject} {prompt}" as often as it fits      a [v1 … v16] dog swimming, a dog swimming, ...
    free text with a word for each place            a photo of [v1 … v16] dog beside a [w1 … w16] cat

The window is always exactly as long as the text encoder's, 77: the words are cut to what the vectors leave. The text
encoder adds its positions to the whole of it, and the vectors' weight stays 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import LikenessError
from ..text_encoder import TextEncoder, Token, Tower
from ..trigger_words import places_of

SUBJECT_AT = 1  # behind "a"; the official index 2 counts the start token


def repeated(text: str, subject: str, times: int) -> str:
    """The official prompt: its words stand so often that they fill the window."""
    return ", ".join([f"a {subject} {text.strip()}"] * times)


@dataclass(frozen=True, eq=False)
class Insertion:
    """vectors: (n, dim), which stand before token `place`, in the place of `gone` tokens."""

    vectors: Tensor
    place: int
    gone: int = 0


@dataclass(frozen=True, eq=False)
class Written:
    """window: the whole text with its vectors. plain: without them. cut: tokens that did not fit into the window."""

    window: Sequence[Token]
    plain: Sequence[Token]
    cut: int


def write(tower: Tower, tokens: Sequence[Token], insertions: Sequence[Insertion]) -> Written:
    """The tokens of a text with vectors in it, as one window.

    Raises LikenessError when the vectors leave no room for the words up to the last of them.
    """
    ordered = sorted(insertions, key=lambda insertion: insertion.place)
    both: list[Token] = []
    plain: list[Token] = []
    start = needed = 0
    for insertion in ordered:
        both += tokens[start : insertion.place]
        plain += tokens[start : insertion.place]
        both += [Token(vector) for vector in insertion.vectors]
        needed = len(both)
        start = insertion.place + insertion.gone
    both += tokens[start:]
    plain += tokens[start:]
    room = tower.length - 2
    if needed > room:
        count = sum(len(insertion.vectors) for insertion in ordered)
        raise LikenessError(
            f"The prompt has room for {room} tokens, and {count} vectors of {len(ordered)} subjects with the words "
            f"before them are {needed}: use fewer subjects, or a shorter text before the last of them."
        )
    return Written(tower.window(both[:room]), tower.window(plain[:room]), max(len(both) - room, 0))


def places_of_words(encoder: TextEncoder, tokens: Sequence[Token], words: Sequence[str]) -> list[tuple[range, int]]:
    """Where placeholders stand, from left to right, with the number of the word."""
    name = encoder.towers[0].name
    spelt = [encoder.tokenize(word)[name] for word in words]
    found = [(span, number) for number, pieces in enumerate(spelt) for span in places_of(tokens, pieces)]
    return sorted(found, key=lambda pair: pair[0].start)
