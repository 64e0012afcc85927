"""The file of a SeFi-IDE subject: a table of tokens per text encoder, and what it was trained for.

sefi.clip_l.tokens (stages, 2, 768), for SDXL also sefi.clip_g.tokens (stages, 2, 1280): [s, 0] for keys, [s, 1] for
values. Weights of the generator (sefi.<encoder>.generator.*) may stand beside them; use needs the tables alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LikenessError
from ...weights.embedding_files import TokenEmbedding
from ...weights.families import TEXT_ENCODERS
from ...weights.files import read_weights
from .networks import TIMESTEPS

FORMAT = "sefi-ide/1"
_WIDTHS = {encoder.name: encoder.width for encoder in TEXT_ENCODERS}


@dataclass(frozen=True, eq=False)
class Subject:
    """tables: (stages, 2, width) by text encoder (`clip_l`, `clip_g`). timesteps: those the stages divide."""

    placeholder: str
    class_word: str
    tables: Mapping[str, Tensor]
    timesteps: int = TIMESTEPS
    training: Mapping[str, str] = field(default_factory=dict)  # what else the metadata say

    @property
    def stages(self) -> int:
        return len(next(iter(self.tables.values())))

    def plain_embedding(self) -> TokenEmbedding:
        """One vector for every stage, for keys and values alike: the mean of the value tokens. Likeness is lost."""
        return TokenEmbedding({name: table[:, 1].mean(0, keepdim=True) for name, table in self.tables.items()})


def subject_tensors(subject: Subject) -> dict[str, Tensor]:
    """The tensors of the file to write."""
    return {f"sefi.{name}.tokens": table for name, table in subject.tables.items()}


def subject_metadata(subject: Subject) -> dict[str, str]:
    """The metadata of the file to write."""
    return dict(subject.training) | {
        "format": FORMAT,
        "placeholder": subject.placeholder,
        "class_word": subject.class_word,
        "stages": str(subject.stages),
        "timesteps": str(subject.timesteps),
    }


def load_subject(path: Path) -> Subject:
    """The subject in a file. Raises LikenessError, naming the file, when it holds none or a damaged one."""
    tensors, metadata = read_weights(path)
    said = dict(metadata)
    if said.pop("format", None) != FORMAT:
        raise LikenessError(
            f"'{path.name}' is not a SeFi-IDE subject ({FORMAT}): choose a file that its training wrote."
        )
    tables = {name: tensors[key] for name in _WIDTHS if (key := f"sefi.{name}.tokens") in tensors}
    if not tables:
        raise LikenessError(f"'{path.name}' holds no SeFi-IDE tokens (sefi.clip_l.tokens): train the subject again.")
    stages = said.pop("stages", "")
    for name, table in tables.items():
        if table.ndim != 3 or not _fits(name, table.shape[2]) or table.shape[1] != 2 or str(len(table)) != stages:
            raise LikenessError(
                f"The tokens for {name} in '{path.name}' have the shape {tuple(table.shape)} instead of "
                f"({stages or 'stages'}, 2, {_WIDTHS[name]}): train the subject again."
            )
        if not bool(torch.isfinite(table).all()):
            raise LikenessError(
                f"The tokens for {name} in '{path.name}' hold values that are not numbers: train the subject again."
            )
    placeholder, class_word = said.pop("placeholder", ""), said.pop("class_word", "")
    timesteps = said.pop("timesteps", str(TIMESTEPS))
    if not placeholder or not class_word or not timesteps.isdecimal() or int(timesteps) < 1:
        raise LikenessError(
            f"The metadata of '{path.name}' miss the placeholder, the class word or the timesteps: "
            "train the subject again."
        )
    return Subject(placeholder, class_word, tables, int(timesteps), said)


def _fits(encoder: str, width: int) -> bool:
    """Whether tokens so wide may be of this text encoder; smaller ones than any published have widths of their own."""
    return width == _WIDTHS[encoder] or width < min(_WIDTHS.values())
