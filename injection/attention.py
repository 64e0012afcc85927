"""Decoupled cross-attention, once, for every binding (IP-Adapter, arXiv 2308.06721, equation 4).

    out = softmax(q Kᵀ/√d) V  +  Σᵢ  mᵢ · softmax(q K'ᵢᵀ/√d) (sᵢ V'ᵢ)

The first term is the layer's own attention to the text. Each further term attends with the same queries to one
identity; its strength s is folded into the values when they are projected, so a site costs two small products. A term
may bring a `merge`, which makes of both attentions what is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.effects import Merge


@dataclass(frozen=True)
class SiteTerm:
    """Projected tokens of one identity at one site, in the layout attention reads: see `split_heads`.

    keys, values: (groups, heads, n_tokens, width / heads). One group serves a run of consecutive pictures: the batch of
    the queries is a multiple of `groups`. mask: None, or (1 | batch, L, 1) factors per query. merge: see
    `effects.Merge`; None for a sum.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None
    merge: Merge | None = None


def split_heads(t: Tensor, heads: int) -> Tensor:
    """(groups, n, width) -> (groups, heads, n, width / heads)"""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q Kᵀ/√d) V by heads. q: (batch, L, width); keys, values: (groups, n, width) -> (batch, L, width)."""
    return attend_by_head(q, split_heads(keys, heads), split_heads(values, heads))


def attend_by_head(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attend` to keys and values (groups, heads, n, width / heads).

    Images that share their tokens are laid end to end as one long row of queries, so that keys and values are never
    repeated for a batch.
    """
    groups, heads, _, width = keys.shape
    out = torch.nn.functional.scaled_dot_product_attention(
        q.reshape(groups, -1, heads, width).transpose(1, 2), keys, values
    )
    return out.transpose(1, 2).reshape(q.shape)


def add_identity(out: Tensor, q: Tensor, terms: Iterable[SiteTerm]) -> Tensor:
    """The layer's attention output plus every identity's term. out, q: (batch, L, width) -> (batch, L, width).

    Every identity is merged with the layer's own attention, so that their order does not matter.
    """
    text = out
    for term in terms:
        identity = attend_by_head(q, term.keys, term.values)
        if term.merge is not None:
            identity = term.merge(text, identity, q, term.keys)
        out = out + identity if term.mask is None else torch.addcmul(out, identity, term.mask)
    return out
