"""The diffusers binding for DiTs: modules enter a FluxTransformer2DModel behind its blocks, by forward hooks.

`inject_blocks` and `eject` are a pair. What is added is the same as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.effects import BlockTerm
from ..weights.families import BlockKind, DitBlock, DitLayout
from .diffusers import factors_of
from .plan import Role, check_blocks, fit_rows


class InjectedDit:
    """The modules of people behind the blocks of a diffusers FluxTransformer2DModel; `eject` takes them out again.

    roles: one per chunk of the batch; set it when the batch's make-up changes. grid: rows and columns of the image's
    tokens, for masks. Tokens behind those stay as the blocks left them.
    """

    def __init__(
        self, transformer: Any, terms: Iterable[BlockTerm], roles: Sequence[Role], grid: tuple[int, int]
    ) -> None:
        layout = DitLayout(
            len(transformer.transformer_blocks), len(transformer.single_transformer_blocks), transformer.inner_dim
        )
        self.roles, self.grid = tuple(roles), grid
        self.terms = [term for term in terms if term.why_never is None]
        for term in self.terms:
            check_blocks(term, layout, type(transformer).__name__)
        self._prepared: dict[Any, Tensor] = {}
        self._hooks = [
            self._module_of(transformer, block).register_forward_hook(self._behind(block))
            for block in layout.blocks
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
        def hook(_module: nn.Module, _args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            text, images = out
            own = images[:, : self.grid[0] * self.grid[1]]
            changed = images.clone()
            for term in self.terms:
                if block in term.numbers:
                    changed[:, : own.shape[1]] += self._residual(term, term.numbers[block], own)
            return text, changed

        return hook

    def _residual(self, term: BlockTerm, number: int, images: Tensor) -> Tensor:
        pictures = len(images) // len(self.roles)
        key = (id(term), number, self.roles, pictures)
        if key not in self._prepared:
            halves = {Role.COND: term.tokens.cond, Role.UNCOND: term.tokens.uncond}
            made = {role: term.modules.prepare(number, halves[role]) for role in set(self.roles)}
            self._prepared[key] = torch.cat([fit_rows(made[role], pictures) for role in self.roles])
        added = term.strength * term.modules.residual(number, images, self._prepared[key])
        factors = factors_of(term.scope, self.grid, pictures, len(self.roles))
        return added if factors is None else added * factors.to(added)


def inject_blocks(
    transformer: Any,
    terms: Iterable[BlockTerm],
    grid: tuple[int, int],
    roles: Sequence[Role] = (Role.UNCOND, Role.COND),
) -> InjectedDit:
    """Put people's modules behind the blocks of a diffusers FLUX; call `eject` on what is returned to take them out."""
    return InjectedDit(transformer, terms, roles, grid)
