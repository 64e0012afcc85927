"""PuLID's contrastive alignment and its sum of losses (arXiv 2404.16022).

    L = L_diff + λ_id L_id + λ_sem L_sem + λ_lay L_lay
    L_sem = ‖R(Q_tid) − R(Q_t)‖        R(Q) = softmax over the image of (K Qᵀ / √d) Q
    L_lay = ‖Q_tid − Q_t‖

Q are the queries of the image at the cross-attention to the prompt whose keys are K, with the person (tid) and without
(t), in two samplings that begin from the same noise. R is the reverse of ordinary attention: every word of the prompt
gathers what in the image responds to it. The person must change neither.

Queries are (batch, heads, image tokens, d), keys (batch, heads, words, d). Nothing flows back into Q_t and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reduction(Enum):
    """How a difference becomes a number. The paper leaves it open."""

    MSE = "mse"  # mean of the squares: does not depend on the size of a layer
    L2 = "l2"  # norm over heads, tokens and width; mean over the batch

    def of(self, difference: Tensor) -> Tensor:
        """A scalar of a difference (batch, heads, tokens, d)."""
        if self is Reduction.MSE:
            return difference.square().mean()
        return torch.linalg.vector_norm(difference.flatten(1), dim=1).mean()


class Alignment(NamedTuple):
    """L_sem and L_lay, both scalars."""

    semantic: Tensor
    layout: Tensor


@dataclass(frozen=True)
class Weights:
    """λ_sem, λ_lay and λ_id; the defaults are the paper's."""

    semantic: float = 0.6
    layout: float = 0.1
    identity: float = 1.0

    def alignment(self, found: Alignment) -> Tensor:
        """L_align."""
        return self.semantic * found.semantic + self.layout * found.layout

    def total(self, denoising: Tensor, found: Alignment, identity: Tensor) -> Tensor:
        """L."""
        return denoising + self.alignment(found) + self.identity * identity


def response(queries: Tensor, keys: Tensor) -> Tensor:
    """R(Q): what of the image responds to each word, (batch, heads, words, d), float32."""
    queries, keys = queries.float(), keys.float()
    scores = keys @ queries.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.softmax(-1) @ queries


def merge_heads(states: Tensor) -> Tensor:
    """All heads as one: (batch, heads, tokens, d) -> (batch, 1, tokens, heads · d)."""
    return states.transpose(1, 2).flatten(2).unsqueeze(1)


def align_layer(
    with_person: Tensor, without: Tensor, keys: Tensor, reduction: Reduction = Reduction.MSE, merged: bool = False
) -> Alignment:
    """The losses of one layer at one step. merged: responses of all heads as one, instead of head by head."""
    with_person, without, keys = with_person.float(), without.detach().float(), keys.detach().float()
    layout = reduction.of(with_person - without)
    if merged:
        with_person, without, keys = merge_heads(with_person), merge_heads(without), merge_heads(keys)
    return Alignment(reduction.of(response(with_person, keys) - response(without, keys)), layout)


def identity_loss(generated: Tensor, reference: Tensor, found: Tensor) -> Tensor:
    """L_id: the mean of 1 − cos over the samples in which a face was found, 0 where there is none.

    generated, reference: (batch, d), of any length; found: (batch,), bool.
    """
    losses = 1 - F.cosine_similarity(generated.float(), reference.detach().float(), dim=-1)
    kept = found.to(losses)
    return (losses * kept).sum() / kept.sum().clamp(min=1)
