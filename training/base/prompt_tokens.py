"""Prompts of any length as tokens, cut where the host cuts them, so that training reads what sampling will read.

ComfyUI gives every 75 tokens a start, an end and padding of their own, encodes these chunks one by one and joins their
states (`SDTokenizer.tokenize_with_weights`). kohya's trainers cut a caption off after one chunk unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TORN = 8  # tokens of a group from which on it is torn at a chunk's end; shorter ones begin the next chunk


def groups_of(ids: Sequence[int], words: Sequence[Sequence[int]]) -> list[list[int]]:
    """A prompt's tokens in the groups that the host makes of it: each learned word (`embedding:` there) is one, and so
    is the text before, between and behind them. words: the ids of each learned word."""
    groups, text, at = [], [], 0
    while at < len(ids):
        word = next((w for w in words if list(ids[at : at + len(w)]) == list(w)), None)
        if word is None:
            text.append(ids[at])
            at += 1
            continue
        groups += [text, list(word)]
        text, at = [], at + len(word)
    return [group for group in [*groups, text] if group]


def chunks_of(groups: Sequence[Sequence[int]], length: int, start: int, end: int, pad: int) -> list[list[int]]:
    """Chunks of `length` tokens, start and end among them. A prompt without tokens is one chunk."""
    room = length - 2
    chunks: list[list[int]] = [[]]
    for group in groups:
        for piece in _pieces(group, room, room - len(chunks[-1])):
            if len(chunks[-1]) + len(piece) > room:
                chunks.append([])
            chunks[-1] += piece
    return [[start, *chunk, end, *[pad] * (room - len(chunk))] for chunk in chunks]


def _pieces(group: Sequence[int], room: int, left: int) -> Iterator[list[int]]:
    """A group as it is torn where `left` tokens fit into the chunk that was begun."""
    if left < len(group) >= TORN:
        yield list(group[:left])
        group = group[left:]
    for start in range(0, len(group), room):
        yield list(group[start : start + room])
