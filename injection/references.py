"""How a DiT attends to references: W of softmax(q kᵀ/√d + log W) v, by rows, without ever building W whole.

The sequence is [text | target | reference 1 | … | reference n]; W[i, j] = 0 leaves key j out for row i.

    row               text, target                  reference k
    text              1                             1
    target token i    1                             region_k(i) · c_k(j)
    token of ref. a   1, or 0 if isolated           1, or 0 for k ≠ a if separate

c_k(j) is a person's strength b, in the face alone where one is given. Text rows do not get it: they tell the model what
is to be painted, not how like. A factor on keys or values is something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IN_FACE = 0.5  # of a token's area that must be face

# queries, keys, values (batch, heads, n, d), and what is added to their logits, None for nothing -> (batch, n, heads·d)
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Sequences:
    """How many tokens each part has."""

    text: int
    target: int
    references: tuple[int, ...]

    @property
    def own(self) -> int:
        """Tokens before the references."""
        return self.text + self.target

    @property
    def spans(self) -> tuple[slice, ...]:
        """Where each reference lies."""
        ends = list(accumulate(self.references, initial=self.own))
        return tuple(slice(a, b) for a, b in pairwise(ends))

    @property
    def total(self) -> int:
        return self.own + sum(self.references)


class Weight(NamedTuple):
    """How strongly target tokens attend to one reference. rows: (1 | batch, T), where the person may be; None:
    everywhere. keys: (R_k,), of the reference's tokens; None: 1."""

    rows: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class Sight:
    """Whom references see. isolated: not the text and the target; separate: not each other."""

    isolated: bool = False
    separate: bool = False


def key_weights(strength: float, tokens: tuple[int, int], face: Tensor | None = None) -> Tensor | None:
    """c of one reference: (R_k,). face: (1, H, W), 0..1, over the reference; None: all of it is meant."""
    if strength == 1.0:
        return None
    count = tokens[0] * tokens[1]
    if face is None:
        return torch.full((count,), strength)
    inside = F.adaptive_avg_pool2d(face.float().unsqueeze(1), tokens).flatten() > IN_FACE
    return torch.where(inside, strength, 1.0)


def target_bias(parts: Sequences, weights: Sequence[Weight]) -> Tensor | None:
    """log W of the target's rows: (1 | batch, 1, 1 | T, L + T + R), or None where all are 1."""
    if all(weight.rows is None and weight.keys is None for weight in weights):
        return None
    rows = [weight.rows for weight in weights if weight.rows is not None]
    batch, n = (max(len(r) for r in rows), parts.target) if rows else (1, 1)
    bias = torch.zeros(batch, 1, n, parts.total)
    for span, weight in zip(parts.spans, weights, strict=True):
        if weight.rows is not None:
            bias[..., span] += weight.rows.float().log()[:, None, :, None]
        if weight.keys is not None:
            bias[..., span] += weight.keys.float().log()
    return bias


class Rows(NamedTuple):
    """Queries that see the same. keys: of those, None for all of them. bias: added to their logits."""

    rows: slice
    keys: slice | tuple[slice, slice] | None = None
    bias: Tensor | None = None


def rows_of(parts: Sequences, bias: Tensor | None, sight: Sight, queries: int) -> list[Rows]:
    """All queries, of which there are as many as keys, or only the sequence's own where references have none.

    bias: of the target's rows, see `target_bias`. Rows that see the same are one, and only those that need a mask get
    one, so that a kernel without masks still computes the rest.
    """
    own, total = parts.own, parts.total
    with_references = queries > own
    apart = with_references and (sight.isolated or sight.separate)
    unmasked = total if with_references and not apart else own  # they see everything
    if bias is None:
        found = [Rows(slice(0, unmasked))]
    else:
        found = [Rows(slice(0, parts.text)), Rows(slice(parts.text, own), None, bias), Rows(slice(own, unmasked))]
    if apart and sight.separate:
        found += [Rows(span, span if sight.isolated else (slice(0, own), span)) for span in parts.spans]
    elif apart:
        found.append(Rows(slice(own, total), slice(own, total)))
    return [piece for piece in found if piece.rows.start < piece.rows.stop]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequences,
    bias: Tensor | None,
    sight: Sight,
    attention: Attention,
    mask: Tensor | None = None,
    axes: tuple[int, int] = (2, 1),
) -> Tensor:
    """What `attention` makes of queries, keys and values, joined; queries may lack those of the references.

    bias: of the target's rows. mask: what the network itself adds to all logits, or bool, (…, 1 | n, L + T + R). axes:
    where the tokens are in q, k, v, and in what `attention` returns.
    """
    mask = _as_bias(mask, q)
    axis, out_axis = axes
    pieces = [
        attention(
            _taken(q, piece.rows, axis),
            _taken(k, piece.keys, axis),
            _taken(v, piece.keys, axis),
            _sum(piece.bias, _cut(mask, piece)),
        )
        for piece in rows_of(parts, bias, sight, q.shape[axis])
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=out_axis)


def _taken(t: Tensor, which: slice | tuple[slice, slice] | None, axis: int) -> Tensor:
    if which is None:
        return t
    spans = which if isinstance(which, tuple) else (which,)
    cut = [t.narrow(axis, span.start, span.stop - span.start) for span in spans]
    return cut[0] if len(cut) == 1 else torch.cat(cut, dim=axis)


def _as_bias(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask of any form as (1 | batch, 1 | heads, 1 | n, keys), to be added."""
    if mask is None:
        return None
    mask = mask[None, None] if mask.ndim == 2 else mask.unsqueeze(1) if mask.ndim == 3 else mask
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return mask


def _cut(mask: Tensor | None, piece: Rows) -> Tensor | None:
    if mask is None:
        return None
    rows = mask if mask.shape[-2] == 1 else mask[..., piece.rows, :]
    return _taken(rows, piece.keys, rows.ndim - 1)


def _sum(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    return mask if bias is None else bias if mask is None else bias + mask


def whole_bias(parts: Sequences, bias: Tensor | None, sight: Sight) -> Tensor | None:
    """The same log W as one dense mask (1 | batch, 1, n, n), for networks that take nothing else; None for no mask."""
    if bias is None and not (sight.isolated or sight.separate):
        return None
    own, total = parts.own, parts.total
    whole = torch.zeros(1 if bias is None else len(bias), 1, total, total)
    if bias is not None:
        whole[:, :, parts.text : own] = bias
    if sight.isolated:
        whole[:, :, own:, :own] = -torch.inf
    if sight.separate:
        for span in parts.spans:
            others = torch.ones(total, dtype=torch.bool)
            others[:own], others[span] = False, False
            whole[:, :, span, others] = -torch.inf
    return whole
