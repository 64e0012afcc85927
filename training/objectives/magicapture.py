"""How MagiCapture (arXiv 2309.06895) puts its objectives together for one sample of each kind."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ...errors import LikenessError


class ShotKind(Enum):
    """What a training sample shows, and which prompt goes with it."""

    INSTANCE = "instance"  # a photo of the person, described with the subject token
    STYLE = "style"  # a reference photo, described with the style token; its face does not count
    BOTH = "both"  # the reference photo as pseudo-label of a prompt with both tokens

    @property
    def shows_person(self) -> bool:
        """Whether the face in the result should be the person's."""
        return self is not ShotKind.STYLE


STYLE_SHARE = 0.5  # of a phase, for which samples with a reference photo weigh more


def reconstruction_weight(kind: ShotKind, progress: float, lambda_style: float) -> float:
    """λ_style for samples with a reference photo in the first half of a phase, else 1. progress: 0..1."""
    return lambda_style if kind is not ShotKind.INSTANCE and progress < STYLE_SHARE else 1.0


def regions(kind: ShotKind, mask: Tensor, n_subject: int, n_style: int) -> Tensor:
    """Where each token may look: (batch, tokens, h, w), subject tokens before style tokens.

    mask: (batch, 1, h, w), the soft mask of the reconstruction loss: the face for `INSTANCE`, all but the face for the
    others. Only the tokens of the kind's prompt are there: the subject's in the face, the style's outside it.
    """
    if kind is ShotKind.INSTANCE:
        return mask.expand(-1, n_subject, -1, -1)
    if kind is ShotKind.STYLE:
        return mask.expand(-1, n_style, -1, -1)
    return torch.cat([(1 - mask).expand(-1, n_subject, -1, -1), mask.expand(-1, n_style, -1, -1)], 1)


def positions(input_ids: Tensor, token_ids: list[int]) -> Tensor:
    """The first position of each token in each prompt: (batch, length) -> (batch, tokens).

    Raises LikenessError when a prompt lacks one.
    """
    found = input_ids.unsqueeze(1) == torch.tensor(token_ids, device=input_ids.device).view(1, -1, 1)
    if not bool(found.any(-1).all()):
        raise LikenessError("A training prompt lacks a placeholder token: write {} into every template.")
    return found.int().argmax(-1)
