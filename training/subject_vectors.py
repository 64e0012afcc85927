"""What an identity adapter makes of a subject's photos, for methods that tune it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.blip_diffusion import BlipDiffusion
from ..adapters.blip_diffusion.words import VOCABULARY, WordPieces
from ..errors import LikenessError
from ..models_download import find_file
from .data.dataset import Dataset


def subject_vectors(adapter: Any, dataset: Dataset, category: str, find_vocabulary: Callable[[], WordPieces]) -> Tensor:
    """The mean of the vectors of all photos under the word for what they show, (n, dim); of an adapter that holds a
    tuned subject alone, that one's. LikenessError for an adapter of another system."""
    if not isinstance(adapter, BlipDiffusion):
        raise LikenessError(
            f"The adapter {adapter.name!r} is one of {adapter.title}, and this training tunes one of BLIP-Diffusion: "
            "choose a file of that."
        )
    images = [torch.from_numpy(picture.pixels.copy()).float().div(255).unsqueeze(0) for picture in dataset.pictures]
    return adapter.subject_of(images, category, find_vocabulary)


def vocabulary_beside(adapter: Path) -> WordPieces:
    """BERT's, which lies beside an adapter's file or among the models; LikenessError that says how to get it."""
    beside = adapter.with_name(VOCABULARY)
    return WordPieces.load(beside if beside.is_file() else find_file("blip_diffusion", VOCABULARY))
