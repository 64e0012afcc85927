"""How a person's attention joins the text's (PuLID, arXiv 2404.16022, and the official code's second version).

With T the attention to the text and I that to the person, both (batch, places, width), the part of I that lies along T
is, channel by channel and over the whole image,

    P = (Σₙ T·I / Σₙ T·T) T

    off        out = T + I
    ortho      out = T + I - P              the text's own direction stays the text's
    ortho_v2   out = T + I + (a - 1) P      a: how much a place attends to the person's first five tokens

The strength is in I already. a is the share of the first five tokens in a softmax of the unscaled logits, the mean over
heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST = 5  # tokens that count as the person's face: all of the embedding's in version 1


def along_text(text: Tensor, identity: Tensor) -> Tensor:
    """P, (batch, places, width), in float32. Zero where the text's channel is zero everywhere."""
    text, identity = text.float(), identity.float()
    shared = (text * identity).sum(dim=-2, keepdim=True)
    length = (text * text).sum(dim=-2, keepdim=True)
    return shared / length.clamp_min(torch.finfo(torch.float32).tiny) * text


def face_share(queries: Tensor, keys: Tensor) -> Tensor:
    """a, (batch, places, 1). queries: (batch, places, width); keys: (groups, heads, n, width / heads)."""
    groups, heads, _, width = keys.shape
    by_head = queries.reshape(groups, -1, heads, width).transpose(1, 2)
    share = (by_head @ keys.transpose(-2, -1)).softmax(dim=-1)[..., :FIRST].sum(dim=-1)
    return share.mean(dim=1).reshape(*queries.shape[:2], 1)


def ortho(text: Tensor, identity: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """I - P; see `effects.Merge`."""
    return (identity.float() - along_text(text, identity)).to(text.dtype)


def ortho_v2(text: Tensor, identity: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """I + (a - 1) P; see `effects.Merge`."""
    share = face_share(queries, keys).float()
    return torch.addcmul(identity.float(), along_text(text, identity), share - 1).to(text.dtype)
