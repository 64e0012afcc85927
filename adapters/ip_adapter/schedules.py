"""Weights over the frames of an animation, and which two images a frame lies between.

Curves, their names and their options follow the Weights node of cubiq/ComfyUI_IPAdapter_plus@9d076a3 (where "ease in"
starts fast and "ease out" starts slowly, against common use), so that workflows carry over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from ...checks import LARGEST_FACTOR
from ...errors import LikenessError


class Timing(Enum):
    """The curve from the first weight to the last; the value is the name a user chooses."""

    CUSTOM = "custom"  # the weights as they are written, one per frame
    LINEAR = "linear"
    EASE_IN_OUT = "ease_in_out"
    EASE_IN = "ease_in"
    EASE_OUT = "ease_out"
    RANDOM = "random"


class FrameSharing(Enum):
    """How the frames share several images; the value is the name a user chooses."""

    FULL_BATCH = "full batch"  # frame i shows image i, and the curve spans all frames
    SHIFT_BATCHES = "shift batches"  # one curve per pair of neighbours, always from the earlier to the later
    ALTERNATE_BATCHES = "alternate batches"  # the same, but an image stays on its side: even first, odd second


@dataclass(frozen=True)
class FrameRange:
    """How many frames a curve has, and where it starts and ends in them.

    Before `start` the first weight is held, from `end` on the last one. add_starting and add_ending hold the first and
    the last frame longer where images are cross-faded.
    """

    frames: int
    start: int = 0
    end: int = 9999
    add_starting: int = 0
    add_ending: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise LikenessError(f"a schedule of {self.frames} frames is empty: set frames to 1 or more.")
        if min(self.start, self.end, self.add_starting, self.add_ending) < 0:
            raise LikenessError("a schedule counts frames from 0: set its start, end and added frames to 0 or more.")


@dataclass(frozen=True)
class Schedule:
    """One entry per frame.

    weights, and the same in reverse order for the opposite reference. image_1, image_2: the images (from 0) that the
    frame lies between; image_2 is empty where a frame shows a single image, both are empty where there are none.
    """

    weights: tuple[float, ...]
    inverted: tuple[float, ...]
    image_1: tuple[int, ...] = ()
    image_2: tuple[int, ...] = ()


_CURVES: dict[Timing, Callable[[float], float]] = {
    Timing.LINEAR: lambda u: u,
    Timing.EASE_IN_OUT: lambda u: (1 - math.cos(math.pi * u)) / 2,
    Timing.EASE_IN: lambda u: math.sin(math.pi * u / 2),
    Timing.EASE_OUT: lambda u: 1 - math.cos(math.pi * u / 2),
}


def parse_weights(text: str) -> tuple[float, ...]:
    """Weights written by hand, "1.0, 0.5" or one per line.

    Raises LikenessError naming the first that is not a number, or one that leaves the range of half precision at once.
    """
    weights = []
    for entry in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        try:
            weight = float(entry)
        except ValueError:
            weight = math.nan
        if not abs(weight) <= LARGEST_FACTOR:
            raise LikenessError(
                f'weights: {entry[:40]!r} is not a number up to {LARGEST_FACTOR:g}; write them like "1.0, 0.5".'
            )
        weights.append(weight)
    if not weights:
        raise LikenessError('weights: the text is empty, write at least one such as "1.0".')
    return tuple(weights)


def curve(
    weights: Sequence[float], timing: Timing, span: FrameRange, generator: torch.Generator | None = None
) -> tuple[float, ...]:
    """One weight per frame, from the first of `weights` to the last; CUSTOM returns them unchanged.

    RANDOM draws every frame between the two from `generator`, or from one seeded with 0.
    """
    if timing is Timing.CUSTOM:
        return tuple(weights)
    first, last = weights[0], weights[-1]
    start = min(span.start, span.frames)
    end = min(max(span.end, start), span.frames)
    n = end - start
    if timing is Timing.RANDOM:
        generator = generator or torch.Generator().manual_seed(0)
        shares = torch.rand(n, generator=generator).tolist()
    else:
        shares = [_CURVES[timing](i / max(n - 1, 1)) for i in range(n)]
    moving = [first + (last - first) * share for share in shares]
    return (*[first] * start, *moving, *[last] * (span.frames - end))


def schedule(
    weights: Sequence[float],
    timing: Timing,
    span: FrameRange,
    method: FrameSharing = FrameSharing.FULL_BATCH,
    n_images: int = 0,
    generator: torch.Generator | None = None,
) -> Schedule:
    """Weights and images of every frame.

    weights: at least one, see `parse_weights`. n_images: how many images share the frames. The cross-fading methods
    lay one curve per pair of neighbours end to end; with fewer than two images they are the full batch.
    """
    values = curve(weights, timing, span, generator)
    if method is FrameSharing.FULL_BATCH or n_images < 2:
        pictures = tuple(min(frame, n_images - 1) for frame in range(len(values))) if n_images else ()
        return Schedule(values, values[::-1], pictures)
    spans = [_pair(pair, values, method) for pair in range(n_images - 1)]
    frames = [frame for pair in spans for frame in pair]
    frames = [frames[0]] * span.add_starting + frames + [frames[-1]] * span.add_ending
    all_weights, image_1, image_2 = zip(*frames, strict=True)
    return Schedule(all_weights, all_weights[::-1], image_1, image_2)


def _pair(pair: int, values: tuple[float, ...], method: FrameSharing) -> list[tuple[float, int, int]]:
    """(weight, first image, second image) of every frame between two neighbours."""
    turned = method is FrameSharing.ALTERNATE_BATCHES and pair % 2 == 1
    if turned:
        highest, lowest = max(values), min(values)
        return [(highest + lowest - value, pair + 1, pair) for value in values]
    return [(value, pair, pair + 1) for value in values]
