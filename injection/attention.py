"""Decoupled cross-attention, once, for every binding (IP-Adapter, arXiv 2308.06721, equation 4).

    out = softmax(q Kᵀ/√d) V  +  Σᵢ  mᵢ · softmax(q K'ᵢᵀ/√d) (sᵢ V'ᵢ)

The first term is the layer's own attention to the text. Each further term attends with the same queries to one
identity; its strength s is folded into the values when they are projected, so a site costs two small products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteTerm:
    """Projected tokens of one identity at one site.

    keys, values: (groups, n_tokens, width). One group serves a run of consecutive pictures: the batch of the queries is
    a multiple of `groups`. mask: None, or (1 | groups | batch, L, 1) factors per query.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


def attend(q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q Kᵀ/√d) V by heads. q: (batch, L, width); keys, values: (groups, n, width) -> (batch, L, width).

    Pictures that share their tokens are laid end to end as one long row of queries, so that keys and values are never
    repeated for a batch.
    """
    batch, length, width = q.shape
    groups = keys.shape[0]
    q = q.reshape(groups, batch // groups * length, heads, width // heads).transpose(1, 2)
    k = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
    v = values.unflatten(-1, (heads, -1)).transpose(1, 2)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, length, width)


def add_identity(out: Tensor, q: Tensor, terms: Iterable[SiteTerm], heads: int) -> Tensor:
    """The layer's attention output plus every identity's term. out, q: (batch, L, width) -> (batch, L, width)."""
    for term in terms:
        identity = attend(q, term.keys, term.values, heads)
        if term.mask is not None:
            identity = identity * term.mask
        out = out + identity
    return out
