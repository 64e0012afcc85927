"""Who is drawn. A person is a point in a space of visible traits, made from an integer seed.

Every trait moves something by at least two pixels (or changes a large area's colour) in a portrait of 64 pixels; what
is smaller (lip colour, a thin scar) would be noise to a recogniser and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .randomness import uniform_numbers


class HairColour(IntEnum):
    BLACK = 0
    BROWN = 1
    CHESTNUT = 2
    RED = 3
    GINGER = 4
    BLOND = 5
    GREY = 6
    WHITE = 7


class HairStyle(IntEnum):
    BALD = 0
    BUZZ = 1
    SIDE_PARTING = 2
    SPIKY = 3
    MOHAWK = 4
    BUN = 5
    AFRO = 6
    BOB = 7
    CURLY = 8
    LONG = 9


class Iris(IntEnum):
    DARK = 0
    BROWN = 1
    GREEN = 2
    BLUE = 3
    GREY = 4


class Mark(IntEnum):
    NONE = 0
    MOLE = 1
    FRECKLES = 2
    BIRTHMARK = 3


class BeardShape(IntEnum):
    """The beard this person wears whenever the prompt asks for one."""

    FULL = 0
    GOATEE = 1
    LONG = 2


# Continuous traits, each uniform in [-1, 1].
TRAITS = (
    "face_width",
    "jaw_width",
    "jaw_square",
    "chin_length",
    "skin_tone",
    "skin_hue",
    "hair_shade",
    "hair_volume",
    "hairline",
    "eye_distance",
    "eye_size",
    "eye_roundness",
    "eye_tilt",
    "eye_level",
    "brow_thickness",
    "brow_tilt",
    "brow_level",
    "nose_length",
    "nose_width",
    "mouth_width",
    "lip_fullness",
    "mouth_level",
    "ear_size",
    "neck_width",
    "mark_side",
    "mark_height",
)

# Categorical traits and the weight of each of their values.
KINDS: dict[str, tuple[type[IntEnum], tuple[float, ...]]] = {
    "hair_colour": (HairColour, (1, 1, 1, 1, 1, 1, 1, 1)),
    "hair_style": (HairStyle, (0.6, 1, 1.2, 1.2, 0.8, 1, 1, 1.2, 1, 1.2)),
    "iris": (Iris, (1, 1, 1, 1, 1)),
    "mark": (Mark, (2, 1, 1, 1)),
    "beard_shape": (BeardShape, (1, 1, 1)),
}

# Who may be drawn for what. The ranges never meet, so nobody who is tested was ever trained on, and neither the judge
# nor the adapter has seen the people of the recogniser that conditions.
SPLITS: dict[str, range] = {
    "base": range(1_000_000),
    "recogniser": range(1_000_000, 2_000_000),
    "judge": range(2_000_000, 3_000_000),
    "adapter": range(3_000_000, 4_000_000),
    "test": range(9_000_000, 10_000_000),
}

_TRAIT_STREAM, _KIND_STREAM = 1, 2


@dataclass(frozen=True)
class Person:
    """One person: what stays the same in every image."""

    seed: int
    traits: dict[str, float]  # by the names of `TRAITS`, each in [-1, 1]
    kinds: dict[str, IntEnum]  # by the names of `KINDS`

    def vector(self) -> np.ndarray:
        """The identity as numbers, float32: the continuous traits, then one-hot blocks of the categorical ones."""
        blocks = [np.array([self.traits[name] for name in TRAITS], np.float32)]
        for name, (kind, _) in KINDS.items():
            blocks.append(np.eye(len(kind), dtype=np.float32)[int(self.kinds[name])])
        return np.concatenate(blocks)


@dataclass(frozen=True)
class People:
    """N persons as arrays. Selecting keeps the type: `people[3:5]` are two people, `people.person(3)` is one."""

    seeds: np.ndarray  # (N,) int64
    traits: np.ndarray  # (N, len(TRAITS)) float32 in [-1, 1]
    kinds: np.ndarray  # (N, len(KINDS)) int64

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> People:
        return People(self.seeds[rows], self.traits[rows], self.kinds[rows])

    def person(self, row: int) -> Person:
        kinds = {name: kind(int(self.kinds[row, i])) for i, (name, (kind, _)) in enumerate(KINDS.items())}
        return Person(int(self.seeds[row]), dict(zip(TRAITS, self.traits[row].tolist(), strict=True)), kinds)

    def marks(self) -> np.ndarray:
        """(N,) `Mark` numbers."""
        return self.kinds[:, list(KINDS).index("mark")]

    def vectors(self) -> np.ndarray:
        """(N, D) float32: `Person.vector` of everybody."""
        one_hot = [np.eye(len(kind), dtype=np.float32)[self.kinds[:, i]] for i, (kind, _) in enumerate(KINDS.values())]
        return np.concatenate([self.traits, *one_hot], axis=1)


def draw_people(seeds: Iterable[int] | np.ndarray) -> People:
    """The people of these seeds. A seed is the same person on every machine, alone or in company."""
    seeds = np.asarray(seeds if isinstance(seeds, np.ndarray) else list(seeds), dtype=np.int64)
    traits = (2 * uniform_numbers(seeds, _TRAIT_STREAM, len(TRAITS)) - 1).astype(np.float32)
    draws = uniform_numbers(seeds, _KIND_STREAM, len(KINDS))
    kinds = np.stack([pick(draws[:, i], weights) for i, (_, weights) in enumerate(KINDS.values())], axis=1)
    return People(seeds, traits, kinds)


def split_people(split: str, count: int, start: int = 0) -> People:
    """`count` people of one of the `SPLITS`, from its `start`-th on. KeyError for others, ValueError past the end."""
    seeds = SPLITS[split]
    if start < 0 or start + count > len(seeds):
        raise ValueError(f"split '{split}' holds {len(seeds)} people, not {start}..{start + count}")
    return draw_people(seeds[start : start + count])


def pick(draws: np.ndarray, weights: Iterable[float]) -> np.ndarray:
    """Categories for uniform numbers in [0, 1), by weight; (N,) int64."""
    edges = np.cumsum(np.asarray(list(weights), dtype=np.float64))
    return np.searchsorted(edges / edges[-1], draws, side="right").astype(np.int64)
