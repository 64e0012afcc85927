"""What is in an image besides who: the part a prompt can ask for, and the nuisance nobody asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np

from .people import pick
from .randomness import uniform_numbers


class Style(IntEnum):
    PHOTO = 0
    PENCIL = 1
    POP_ART = 2
    NIGHT = 3
    WATERCOLOUR = 4


class Scene(IntEnum):
    FOREST = 0
    BEACH = 1
    CITY = 2
    SNOW = 3
    DESERT = 4
    MOUNTAINS = 5
    ROOM = 6
    STAGE = 7


class Expression(IntEnum):
    NEUTRAL = 0
    SMILING = 1
    SURPRISED = 2


class Clothing(IntEnum):
    SHIRT = 0
    SWEATER = 1
    SUIT = 2


class Colour(IntEnum):
    """Of clothes and hats."""

    RED = 0
    ORANGE = 1
    YELLOW = 2
    GREEN = 3
    BLUE = 4
    PURPLE = 5
    WHITE = 6
    BLACK = 7


@dataclass(frozen=True)
class Description:
    """What a prompt can say of one image."""

    style: Style = Style.PHOTO
    scene: Scene = Scene.ROOM
    expression: Expression = Expression.NEUTRAL
    clothing: Clothing = Clothing.SHIRT
    clothing_colour: Colour = Colour.BLUE
    glasses: bool = False
    beard: bool = False
    hat: Colour | None = None


# How far the nuisance goes at most: uniform in [-limit, limit].
LIMITS: dict[str, float] = {
    "yaw": 0.45,  # radians, positive: the face turns to the right of the image
    "pitch": 0.22,  # radians, positive: the face looks down
    "roll": 0.20,  # radians, positive: clockwise in the image
    "size": 0.05,  # of half the frame, around HEAD_HALF_HEIGHT
    "shift_x": 0.12,  # of half the frame
    "shift_y": 0.05,
    "gaze_x": 1.0,  # of what the iris can move
    "gaze_y": 0.7,
    "light_x": 1.0,  # direction the light comes from, of the frame
    "light_level": 0.10,  # brightness of the whole image
    "warmth": 0.06,  # white balance
    "backdrop": 1.0,  # where things stand in the scene
}
HEAD_HALF_HEIGHT = 0.64  # of half the frame

_CONTENT_STREAM, _NUISANCE_STREAM = 11, 12
_HAT_SHARE, _GLASSES_SHARE, _BEARD_SHARE = 0.25, 0.3, 0.25


@dataclass(frozen=True)
class Shots:
    """N images to be taken, as arrays of N rows. `hat` is a `Colour`, or -1 for no hat."""

    style: np.ndarray
    scene: np.ndarray
    expression: np.ndarray
    clothing: np.ndarray
    clothing_colour: np.ndarray
    glasses: np.ndarray  # bool
    beard: np.ndarray  # bool
    hat: np.ndarray
    nuisance: np.ndarray  # (N, len(LIMITS)) float32, in the order and within the limits of `LIMITS`

    def __len__(self) -> int:
        return len(self.style)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Shots:
        return Shots(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def with_style(self, style: Style) -> Shots:
        """The same images in one style."""
        return replace(self, style=np.full(len(self), int(style)))

    def describe(self, row: int) -> Description:
        """What a prompt could say of one of them."""
        return Description(
            Style(int(self.style[row])),
            Scene(int(self.scene[row])),
            Expression(int(self.expression[row])),
            Clothing(int(self.clothing[row])),
            Colour(int(self.clothing_colour[row])),
            bool(self.glasses[row]),
            bool(self.beard[row]),
            None if self.hat[row] < 0 else Colour(int(self.hat[row])),
        )


def draw_shots(seeds: Iterable[int] | np.ndarray) -> Shots:
    """Images at random, one per seed: every style, scene and colour alike, hats on a quarter of them.

    A hat hides the hair, so more of them would teach a recogniser less of each person.
    """
    seeds = np.asarray(seeds if isinstance(seeds, np.ndarray) else list(seeds), dtype=np.int64)
    kinds = (Style, Scene, Expression, Clothing, Colour, Colour)
    draws = uniform_numbers(seeds, _CONTENT_STREAM, len(kinds) + 3)
    style, scene, expression, clothing, clothing_colour, hat = (
        pick(draws[:, i], [1.0] * len(kind)) for i, kind in enumerate(kinds)
    )
    glasses, beard, hatted = (
        draws[:, len(kinds) + i] < share for i, share in enumerate((_GLASSES_SHARE, _BEARD_SHARE, _HAT_SHARE))
    )
    limits = np.array(list(LIMITS.values()))
    nuisance = ((2 * uniform_numbers(seeds, _NUISANCE_STREAM, len(LIMITS)) - 1) * limits).astype(np.float32)
    return Shots(
        style, scene, expression, clothing, clothing_colour, glasses, beard, np.where(hatted, hat, -1), nuisance
    )
