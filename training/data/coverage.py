"""What the photos of a person do not show: advice about a whole dataset, from keypoints, colours and times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

LEAST = 4  # photos from which a lack of variety means something
TURNED = 0.25  # nose off the middle of the eyes, in distances between them: a head turned by about 30 degrees
SAME_CLOTHES = 18.0  # of 255, between mean colours below the chin
ONE_MINUTE = 60.0  # seconds
MOST_NAMED = 4


def turn(keypoints: NDArray[np.floating]) -> float:
    """How far the nose lies off the middle of the eyes, along the line between them, in distances between them."""
    left, right, nose = (np.asarray(point, np.float64) for point in keypoints[:3])
    across = right - left
    length = float(across @ across)
    return float((nose - (left + right) / 2) @ across / length) if length else 0.0


def clothes(picture: NDArray[np.uint8], keypoints: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """The mean colour (3,) below the chin, 1.5 to 2.5 times the way from eyes to mouth; None where the image ends."""
    points = np.asarray(keypoints, np.float64)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    down = mouth - eyes
    reach = float(np.abs(down).max())
    middle = mouth + 2.0 * down
    left, top = np.floor(middle - reach / 2).astype(int)
    right, bottom = np.ceil(middle + reach / 2).astype(int)
    inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.size < 3 * (right - left) * (bottom - top) / 2:
        return None
    return inside.reshape(-1, 3).mean(0).astype(np.float64)


@dataclass
class Variety:
    """What is looked at in every photo, and what all of them lack."""

    names: list[str] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    colours: list[NDArray[np.float64]] = field(default_factory=list)
    times: list[datetime | None] = field(default_factory=list)

    def add(
        self,
        name: str,
        picture: NDArray[np.uint8],
        keypoints: NDArray[np.floating] | None,
        taken: datetime | None = None,
    ) -> None:
        """One photo (H, W, 3), with the five keypoints of the person's face where they are known."""
        self.names.append(name)
        self.times.append(taken)
        if keypoints is not None:
            self.turns.append(turn(keypoints))
            if (worn := clothes(picture, keypoints)) is not None:
                self.colours.append(worn)

    def advice(self) -> list[str]:
        """Sentences about what the photos have in common that a training would learn as a part of the person."""
        return [*self._about_turns(), *self._about_clothes(), *self._about_times()]

    def _about_turns(self) -> Iterator[str]:
        if len(self.turns) < LEAST:
            return
        if max(map(abs, self.turns)) < TURNED:
            yield "No photo shows the face from the side: the model will have to guess it in images where the head is "
            "turned."
        elif min(self.turns) > -TURNED or max(self.turns) < TURNED:
            yield "The head is turned to one side only: a photo of the other side would help."

    def _about_clothes(self) -> Iterator[str]:
        alike = (np.abs(a - b).max() < SAME_CLOTHES for a, b in combinations(self.colours, 2))
        if len(self.colours) >= LEAST and all(alike):
            yield "The clothes look the same in all photos: the training may learn them as a part of the person."

    def _about_times(self) -> Iterator[str]:
        known = [(time, name) for time, name in zip(self.times, self.names, strict=True) if time is not None]
        pairs = [
            f"{name} and {other}"
            for (one, name), (two, other) in combinations(known, 2)
            if abs((one - two).total_seconds()) < ONE_MINUTE
        ]
        if pairs:
            more = f" and {len(pairs) - MOST_NAMED} more pairs" if len(pairs) > MOST_NAMED else ""
            shown = "; ".join(pairs[:MOST_NAMED])
            yield f"Taken within one minute: {shown}{more}. Photos of other days show more of the person."
