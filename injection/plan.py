"""What is injected, whatever the host: one `AttentionTerm` per identity term, and its keys and values at the sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from ..adapters.effects import AttentionTerm, BlockTerm
from ..adapters.types import IdentityTokens, SiteWeight, SiteWeights
from ..errors import LikenessError
from ..weights.families import FLUX, OTHER, DitLayout, Family, TransformerLayout, of_host, of_sites
from .attention import split_heads
from .masks import combined
from .sites import AttentionSite

WHOLE_VECTOR = 16  # single-precision numbers in a 512-bit register; also the side of a GPU's matrix tile


class Role(IntEnum):
    """Which half of guidance a chunk of the batch belongs to."""

    COND = 0
    UNCOND = 1


def placed(term: AttentionTerm) -> AttentionTerm:
    """The term with its own region made part of its scope's mask."""
    if term.region is None:
        return term
    return replace(term, region=None, scope=replace(term.scope, mask=combined(term.region, term.scope.mask)))


def uniform(strength: float, sites: Sequence[AttentionSite]) -> SiteWeights:
    """The same strength at every site."""
    count = 1 + max(site.transformer for site in sites)
    return (SiteWeight(strength),) * count


# The halves of guidance in ComfyUI's usual order, so that its usual batch reads keys and values as they lie.
_STORED = (Role.UNCOND, Role.COND)


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys and values of one identity at all sites of one shape, with the strength folded in.

    packed: (sites, keys | values, unconditioned | conditioned, rows, heads, n_tokens, width / heads), in memory as
    attention reads it, so that nothing is left to do for a step and one copy moves them all.
    """

    slots: tuple[int, ...]
    packed: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KeysValues:
        """The same elsewhere or in another precision."""
        return KeysValues(self.slots, self.packed.to(device, dtype))

    def of_batch(
        self, roles: Sequence[Role], pictures: int, rows: Sequence[int] | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """slot -> keys and values, (groups, heads, n, width / heads), for a batch of one chunk of images per role.

        rows: which images of the whole batch a chunk holds, None for all. A single row of tokens serves every
        image; otherwise missing rows repeat the last one and extra ones are left out.
        """
        packed, count = self.packed, self.packed.shape[3]
        wanted = [min(row, count - 1) for row in (range(pictures) if rows is None else rows)]
        if count > 1 and wanted != list(range(count)):
            packed = packed.index_select(3, torch.tensor(wanted, device=packed.device))
        if tuple(roles) != _STORED:
            order = torch.tensor([_STORED.index(role) for role in roles], device=packed.device)
            packed = packed.index_select(2, order)
        flat = packed.flatten(2, 3).flatten(0, 1).unbind()
        return dict(zip(self.slots, zip(flat[::2], flat[1::2], strict=True), strict=True))


def project(injection: AttentionTerm, sites: Sequence[AttentionSite], tokens: IdentityTokens) -> list[KeysValues]:
    """Keys and values of every site with an identity term, one entry for each shape of sites.

    tokens: those of the injection, on the device and in the precision of the projection.
    """
    by_shape: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    for site in sites:
        if injection.weight_at(site.transformer).strength != 0:
            packed = _project_site(injection, site, tokens)
            by_shape.setdefault(packed.shape, []).append((site.slot, packed))
    return [
        KeysValues(tuple(slot for slot, _ in group), torch.stack([packed for _, packed in group]))
        for group in by_shape.values()
    ]


def _project_site(injection: AttentionTerm, site: AttentionSite, tokens: IdentityTokens) -> Tensor:
    """(keys | values, unconditioned | conditioned, rows, heads, n_tokens, width / heads)

    The halves may differ in their number of tokens (several photos against one empty encoding): both are repeated to
    a common multiple, which a softmax does not notice; see `repeat_tokens`. For the same reason a few tokens are
    repeated to a whole vector register, with which attention is faster than with fewer; not those that a merge counts.
    """
    weight = injection.weight_at(site.transformer)
    cond = injection.scaling(*injection.projector.project(site.slot, tokens.cond), weight.strength, site.width)
    if weight.swapped:
        halves = {Role.COND: (cond[0], torch.zeros_like(cond[1])), Role.UNCOND: cond}
    else:
        uncond = injection.projector.project(site.slot, tokens.uncond)
        halves = {Role.COND: cond, Role.UNCOND: injection.scaling(*uncond, weight.strength, site.width)}
    n_tokens = math.lcm(*(keys.shape[1] for keys, _ in halves.values()))
    if injection.merge is None and n_tokens < WHOLE_VECTOR and WHOLE_VECTOR % n_tokens == 0:
        n_tokens = WHOLE_VECTOR
    rows = max(len(keys) for keys, _ in halves.values())
    tensors = [fit_rows(repeat_tokens(halves[role][i], n_tokens), rows) for i in (0, 1) for role in _STORED]
    return torch.stack([split_heads(t, site.heads) for t in tensors]).unflatten(0, (2, len(_STORED)))


def repeat_tokens(t: Tensor, n_tokens: int) -> Tensor:
    """Repeat along the token axis to `n_tokens`, a multiple of the present number. Exact under a softmax: every key
    appears equally often, so the weights of its copies add up to the weight it had."""
    return t if t.shape[1] == n_tokens else t.repeat(1, n_tokens // t.shape[1], 1)


def fit_rows(t: Tensor, pictures: int) -> Tensor:
    """One row per image of the batch: a single row serves all, missing rows repeat the last one, extra ones drop."""
    rows = t.shape[0]
    if rows == pictures:
        return t
    if rows > pictures:
        return t[:pictures]
    return torch.cat([t, t[-1:].expand(pictures - rows, *t.shape[1:])])


def take_rows(t: Tensor, rows: Sequence[int] | None) -> Tensor:
    """These rows of a batch, None for all; a single one serves all, and the last stands in for those missing."""
    return t if rows is None or t.shape[0] == 1 else t[[min(row, t.shape[0] - 1) for row in rows]]


class Fitting(Protocol):
    """What tells whether an adapter fits a model."""

    name: str

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text)"""
        ...


def check_fit(
    adapter: Fitting,
    sites: Sequence[AttentionSite],
    model_name: str,
    base: Family = OTHER,
    text_width: int | None = None,
) -> None:
    """Raise LikenessError when an adapter was not made for this model.

    Its layers must fit the model's sites one by one; one that has none must be made for the model's family, its `base`,
    or write a text as wide as the model reads, `text_width`. model_name: what the host calls the model.
    """
    ours, theirs = dict(adapter.site_shapes), {site.slot: (site.width, site.context_dim) for site in sites}
    family = of_sites(list(theirs.values())) if theirs else of_host(model_name)
    reads_as_wide = bool(theirs) and all(width == text_width for _, width in theirs.values())
    if ours == theirs if ours else reads_as_wide or base is family is not OTHER:
        return
    made_for = base.title if text_width is None else f"{base.title} (text width {text_width})"
    if ours:
        made_for = _describe(of_sites(list(ours.values())), ours)
    model = f"{model_name}, {_describe(family, theirs)}" if theirs else model_name
    raise LikenessError(
        f"The adapter {adapter.name!r} was made for {made_for}, but the connected MODEL is {model}: choose an adapter "
        "for that model, or another checkpoint."
    )


def check_blocks(term: BlockTerm, layout: DitLayout | None, model_name: str) -> None:
    """Raise LikenessError when an adapter's modules do not fit behind the blocks of this model.

    layout: of the model, None when it is no DiT that this binding knows.
    """
    if layout is not None and layout.width == term.modules.width and set(term.numbers) <= set(layout.blocks):
        return
    theirs = "" if layout is None else f" ({layout.double} + {layout.single} blocks, {layout.width} wide)"
    raise LikenessError(
        f"The adapter {term.modules.name!r} was made for {FLUX.title} with tokens {term.modules.width} wide, but the "
        f"connected MODEL is {model_name}{theirs}: choose an adapter for that model, or another checkpoint."
    )


def _describe(family: Family, shapes: Mapping[int, tuple[int, int]]) -> str:
    details = f"{len(shapes)} cross-attention layers, text width {next(iter(shapes.values()))[1]}"
    return f"a model with {details}" if family is OTHER else f"{family.title} ({details})"


def layout_of(sites: Sequence[AttentionSite]) -> TransformerLayout:
    """Where the spatial transformers of a model sit, for weight types and layer weights."""
    blocks = {site.transformer: site.block for site in sites}
    return TransformerLayout.of_blocks([blocks[index] for index in sorted(blocks)])
