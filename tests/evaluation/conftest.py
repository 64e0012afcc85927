"""A judge whose answers are known: it reads them from the pixels of the images."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from colour_judge import SIDE, ByColour

from likeness.faces import FaceAnalysis


@dataclass(frozen=True)
class Colours:
    """Images of the people that `ByColour` knows."""

    def of(self, *colours: tuple[float, float, float]) -> torch.Tensor:
        """One image (SIDE, SIDE, 3) of each colour 0..1."""
        return torch.tensor(colours).float().reshape(-1, 1, 1, 3).expand(-1, SIDE, SIDE, 3).contiguous()

    def pair(self, left: tuple[float, float, float], right: tuple[float, float, float]) -> torch.Tensor:
        """One image of two people."""
        one = self.of(left, right)
        return torch.cat([one[0, :, : SIDE // 2], one[1, :, SIDE // 2 :]], 1)[None]


@pytest.fixture(scope="session")
def judge() -> FaceAnalysis:
    return FaceAnalysis("by colour", ByColour(), ByColour(), licence="public domain", commercial=True)


@pytest.fixture(scope="session")
def other_judge() -> FaceAnalysis:
    """The same eyes under another name: the recogniser that made the identities."""
    return FaceAnalysis("conditioner", ByColour(), ByColour("conditioner"))


@pytest.fixture(scope="session")
def colours() -> Colours:
    return Colours()


@pytest.fixture(scope="session")
def identify(other_judge, colours):
    """`identify("ann", RED, ...)`: an identity of images of these colours, made by `other_judge`."""
    from likeness.faces import Identity, build_identity, to_photos

    def make(name: str, *shades: tuple[float, float, float]) -> Identity:
        photos = to_photos(colours.of(*shades))
        faces = [other_judge.find(photo, number)[0] for number, photo in enumerate(photos)]
        return build_identity(photos, faces, name, outlier_threshold=None)

    return make
