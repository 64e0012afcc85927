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

# queries, keys, values (batch, heads, n, d), and what is added to the logits, None for nothing -> (batch, n, heads·d)
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


def attend(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequences, bias: Tensor | None, sight: Sight, attention: Attention
) -> Tensor:
    """(batch, n, heads·d) of queries (batch, heads, n, d), which may lack those of the references.

    bias: of the target's rows, see `target_bias`. Rows that see the same are computed together, and only those that
    need a mask get one, so that a kernel without masks still computes the rest.
    """
    own, total = parts.own, parts.total
    with_references = q.shape[2] > own
    apart = with_references and bool(parts.references) and (sight.isolated or sight.separate)
    unmasked = total if with_references and not apart else own  # rows that see everything, but for the target's
    pieces: list[Tensor] = []
    if bias is None:
        pieces.append(attention(q[:, :, :unmasked], k, v, None))
    else:
        bias = bias.to(q)
        if parts.text:
            pieces.append(attention(q[:, :, : parts.text], k, v, None))
        pieces.append(attention(q[:, :, parts.text : own], k, v, bias))
        if unmasked > own:
            pieces.append(attention(q[:, :, own:unmasked], k, v, None))
    if apart:
        pieces += _references_apart(q, k, v, parts, sight, attention)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _references_apart(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequences, sight: Sight, attention: Attention
) -> list[Tensor]:
    own = parts.own
    if sight.isolated and not sight.separate:
        return [attention(q[:, :, own:], k[:, :, own:], v[:, :, own:], None)]
    pieces = []
    for span in parts.spans:
        keys, values = k[:, :, span], v[:, :, span]
        if not sight.isolated:
            keys, values = torch.cat([k[:, :, :own], keys], 2), torch.cat([v[:, :, :own], values], 2)
        pieces.append(attention(q[:, :, span], keys, values, None))
    return pieces


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
