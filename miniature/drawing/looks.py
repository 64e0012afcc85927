"""The drawn people's colours, and their hair styles in lengths: the tables that the categories of a person point into.

Colours are RGB, 0..1; lengths are in half heads (see `figure.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .people import HairColour, HairStyle, Iris
from .shots import Colour

RGB = tuple[float, float, float]

# From the lightest to the darkest; a person's lies anywhere between.
SKIN: tuple[RGB, ...] = (
    (1.0, 0.87, 0.78),
    (0.95, 0.76, 0.61),
    (0.82, 0.60, 0.43),
    (0.60, 0.40, 0.27),
    (0.38, 0.24, 0.16),
)
HAIR: dict[HairColour, RGB] = {
    HairColour.BLACK: (0.10, 0.09, 0.11),
    HairColour.BROWN: (0.31, 0.19, 0.11),
    HairColour.CHESTNUT: (0.49, 0.25, 0.14),
    HairColour.RED: (0.66, 0.15, 0.08),
    HairColour.GINGER: (0.88, 0.44, 0.13),
    HairColour.BLOND: (0.93, 0.77, 0.40),
    HairColour.GREY: (0.54, 0.55, 0.58),
    HairColour.WHITE: (0.93, 0.92, 0.89),
}
IRIS: dict[Iris, RGB] = {
    Iris.DARK: (0.14, 0.08, 0.06),
    Iris.BROWN: (0.47, 0.26, 0.11),
    Iris.GREEN: (0.25, 0.55, 0.28),
    Iris.BLUE: (0.18, 0.47, 0.85),
    Iris.GREY: (0.52, 0.58, 0.62),
}
CLOTH: dict[Colour, RGB] = {
    Colour.RED: (0.82, 0.15, 0.17),
    Colour.ORANGE: (0.96, 0.50, 0.10),
    Colour.YELLOW: (0.97, 0.84, 0.20),
    Colour.GREEN: (0.18, 0.58, 0.30),
    Colour.BLUE: (0.16, 0.36, 0.80),
    Colour.PURPLE: (0.52, 0.23, 0.68),
    Colour.WHITE: (0.95, 0.95, 0.95),
    Colour.BLACK: (0.13, 0.13, 0.15),
}


@dataclass(frozen=True)
class Cut:
    """A hair style as lengths: how the hair stands off the skull and where it leaves the face free."""

    opacity: float = 1.0
    top: float = 0.12  # thickness over the crown
    side: float = 0.06  # thickness beside the temples
    end: float = 0.1  # height at which it ends
    hairline: float = -0.50  # height of the forehead's upper edge
    opening: float = 0.93  # half width of the free face, as a part of the face's
    square: float = 2.2  # roundness of the forehead's edge: 2 an arch, 5 a straight fringe
    hem: float = 3.0  # roundness of the hair's lower end
    parting: float = 0.0  # slope of the hairline
    bumps: float = 0.0  # how many curls or spikes around the head
    bump: float = 0.0  # how far they stand out
    strands: float = 1.0  # visibility of single strands
    crest: float = 0.0  # the mohawk's strip
    knot: float = 0.0  # the bun's radius


CUTS: dict[HairStyle, Cut] = {
    HairStyle.BALD: Cut(opacity=0.0, top=0.0, side=0.0, end=-0.2),
    HairStyle.BUZZ: Cut(opacity=0.85, top=0.03, side=0.02, end=0.0, hairline=-0.56, opening=0.92, strands=0.0),
    HairStyle.SIDE_PARTING: Cut(top=0.20, side=0.08, end=0.12, hairline=-0.50, parting=0.34),
    HairStyle.SPIKY: Cut(top=0.17, side=0.06, end=0.08, hairline=-0.44, bumps=9, bump=0.17, opening=0.90),
    HairStyle.MOHAWK: Cut(opacity=0.4, top=0.02, side=0.01, end=0.0, hairline=-0.55, strands=0.0, crest=1.0),
    HairStyle.BUN: Cut(top=0.08, side=0.05, end=0.1, hairline=-0.57, opening=0.90, knot=0.30),
    HairStyle.AFRO: Cut(top=0.36, side=0.40, end=0.62, hairline=-0.46, hem=2.0, bumps=15, bump=0.05, strands=0.0),
    HairStyle.BOB: Cut(top=0.16, side=0.19, end=0.80, hairline=-0.24, opening=0.80, square=4.5, hem=6.0),
    HairStyle.CURLY: Cut(
        top=0.24, side=0.30, end=1.25, hairline=-0.40, opening=0.80, hem=3.5, bumps=11, bump=0.10, strands=0.4
    ),
    HairStyle.LONG: Cut(top=0.13, side=0.13, end=2.2, hairline=-0.60, opening=0.78, square=1.7, hem=7.0),
}
