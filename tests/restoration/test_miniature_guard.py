"""The identity guard on drawn people: plain restoration that makes one person another loses the likeness that an
independent recogniser measures; the guard keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.faces.similarity import cosine_similarity
from likeness.miniature.models.backend import miniature_analysis, miniature_judge
from likeness.restoration.guard import guard_of
from likeness.restoration.restore import Fate, PasteOptions, aligned, restore_faces

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def drawn(name: str) -> np.ndarray:
    with Image.open(WORKFLOWS / name) as picture:
        return np.asarray(picture.convert("RGB"))


def likeness(judge, picture: torch.Tensor, face, person: torch.Tensor) -> float:
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    seen = torch.from_numpy(judge.recogniser.embed(pixels, face.keypoints))
    return float(cosine_similarity(seen[None], person[None])[0, 0])


@pytest.mark.parametrize("other", ["miniature_style_1.png", "miniature_style_2.png"])
def test_the_guard_keeps_the_person_whom_plain_restoration_makes_another(other):
    analysis, judge = miniature_analysis(), miniature_judge()
    photo, stranger = drawn("miniature_person.png"), drawn(other)
    [face], [theirs] = analysis.find(photo), analysis.find(stranger)
    picture = torch.from_numpy(photo).float() / 255
    job = aligned(128)(torch.from_numpy(stranger).float() / 255, 0, 0, theirs)
    assert not isinstance(job, str)
    person = torch.from_numpy(judge.recogniser.embed(photo, face.keypoints))

    def to_the_stranger(crops: torch.Tensor) -> torch.Tensor:
        return job.crop.expand_as(crops)

    plain, kept = (
        restore_faces([picture], [[face]], to_the_stranger, 128, PasteOptions(guard=guard_of(analysis, least)))
        for least in (0.0, 0.8)
    )
    assert plain.outcomes[0].fate is Fate.RESTORED and kept.outcomes[0].fate is not Fate.RESTORED
    lost, saved = (likeness(judge, one.pictures[0], face, person) for one in (plain, kept))
    assert saved > 0.7 > lost and saved - lost > 0.2, (lost, saved)
