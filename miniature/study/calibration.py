"""How good the miniature's judge is, measured once on people nobody was trained on, and shipped with its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...evaluation.identity import Calibration, recogniser_of
from ...faces import FaceAnalysis
from ..drawing.people import SPLITS
from ..models.backend import JUDGE
from ..models.weights import FOLDER

FILE = "judge.calibration.json"
PEOPLE, PHOTOS = range(6000, 6060), 6  # numbers within the test people that no study uses


def people() -> Mapping[str, Iterator[Tensor]]:
    """Photos (H, W, 3) 0..1 of the people a judge is measured on, drawn when they are asked for."""
    return {f"person-{number}": _photos(number) for number in PEOPLE}


def _photos(number: int) -> Iterator[Tensor]:
    from ..models.world import photos_of

    yield from torch.from_numpy(photos_of(SPLITS["test"][number], PHOTOS)).float() / 255


def judge_weights(folder: Path = FOLDER) -> str:
    """SHA-256 of the judge's weight file; empty when there is none."""
    file = folder / "judge.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def miniature_calibration_of(judge: FaceAnalysis, folder: Path = FOLDER) -> Calibration | None:
    """What was measured of the miniature's judge; None for any other, and when the weights are no longer the same."""
    if recogniser_of(judge).name != JUDGE or not (folder / FILE).is_file():
        return None
    measured = Calibration.load(folder / FILE)
    return measured if measured.weights == judge_weights(folder) else None
