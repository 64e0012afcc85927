"""Modules behind the blocks of a FluxTransformer2DModel, by forward hooks. What is added is the same as in ComfyUI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.effects import BlockTerm, Prepared
from ...weights.families import BlockKind, DitBlock, DitLayout
from ..plan import Role, check_blocks, fit_rows
from .place import Place
from .unet import factors_of


def dit_of(network: Any) -> DitLayout | None:
    """The blocks of a network that is FLUX; None for every other."""
    blocks = [getattr(network, name, None) for name in ("transformer_blocks", "single_transformer_blocks")]
    if not all(isinstance(part, nn.ModuleList) for part in blocks) or not hasattr(network, "inner_dim"):
        return None
    return DitLayout(len(blocks[0]), len(blocks[1]), network.inner_dim)  # type: ignore[arg-type]


class InjectedDit:
    """The modules of people behind the blocks of a diffusers FluxTransformer2DModel; `eject` takes them out again.

    place: the make-up of the batch, and which windows are open. grid: rows and columns of the image's
    tokens, for masks. Tokens behind those stay as the blocks left them.
    """

    def __init__(self, transformer: Any, terms: Iterable[BlockTerm], place: Place, grid: tuple[int, int]) -> None:
        given, layout = list(terms), dit_of(transformer)
        for term in given:
            check_blocks(term, layout, type(transformer).__name__)
        self.place, self.grid = place, grid
        self.terms = [term for term in given if term.why_never is None]
        self._prepared: dict[Any, Prepared] = {}
        self._hooks = [
            self._module_of(transformer, block).register_forward_hook(self._behind(block))
            for block in (layout.blocks if layout else ())
            if any(block in term.numbers for term in self.terms)
        ]

    def eject(self) -> None:
        """Leave the blocks as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @staticmethod
    def _module_of(transformer: Any, block: DitBlock) -> nn.Module:
        double = block.kind is BlockKind.DOUBLE
        return (transformer.transformer_blocks if double else transformer.single_transformer_blocks)[block.index]

    def _behind(self, block: DitBlock):
        def hook(_module: nn.Module, _args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
            acting = [t for t in self.terms if block in t.numbers and self.place.holds_term(t.scope)]
            if not acting:
                return None
            text, images = out
            own = images[:, : self.grid[0] * self.grid[1]]
            changed = images.clone()
            for term in acting:
                changed[:, : own.shape[1]] += self._residual(term, term.numbers[block], own)
            return text, changed

        return hook

    def _residual(self, term: BlockTerm, number: int, images: Tensor) -> Tensor:
        roles = self.place.roles
        pictures = len(images) // len(roles)
        key = (id(term), number, roles, pictures)
        if key not in self._prepared:
            halves = {Role.COND: term.tokens.cond, Role.UNCOND: term.tokens.uncond}
            made = {role: term.modules.prepare(number, halves[role]) for role in set(roles)}
            parts = zip(*(made[role] for role in roles), strict=True)
            self._prepared[key] = tuple(torch.cat([fit_rows(row, pictures) for row in rows]) for rows in parts)
        prepared = tuple(part.to(images) for part in self._prepared[key])
        added = term.strength * term.modules.residual(number, images, prepared)
        factors = factors_of(term.scope, self.grid, pictures, len(roles))
        return added if factors is None else added * factors.to(added)
