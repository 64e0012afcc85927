"""PuLID for FLUX: its 20 modules, for one person and for several."""

from __future__ import annotations

from typing import Any

import torch

BASE = "flux"
OFF, CLOSED = "PuLID for FLUX, strength 0", "PuLID for FLUX, outside its window"
SILENT = (OFF, CLOSED)
TOKENS, DIM = 32, 2048
INNER = 2 / 3  # of the image tokens' width: 16 heads of 128 on FLUX.1's 3072


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the modules of a file behind its blocks."""
    from likeness.adapters.effects import BlockTerm, Scope
    from likeness.adapters.pulid import CrossAttentions
    from likeness.adapters.pulid.flux import DOUBLE, HEAD_WIDTH, SINGLE
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import ManagedAdapter, apply_effects, dit_of

    layout = dit_of(model)
    assert layout is not None
    numbers, generator = layout.every(DOUBLE, SINGLE), torch.Generator().manual_seed(2)
    inner = round(layout.width * INNER / HEAD_WIDTH) * HEAD_WIDTH
    shapes = {
        "to_q.weight": (inner, layout.width), "to_kv.weight": (2 * inner, DIM), "to_out.weight": (layout.width, inner),
        "norm1.weight": (DIM,), "norm1.bias": (DIM,), "norm2.weight": (layout.width,), "norm2.bias": (layout.width,),
    }  # fmt: skip
    weights = {
        f"pulid_ca.{j}.{name}": torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        for j in range(len(numbers))
        for name, shape in shapes.items()
    }
    modules = ManagedAdapter(CrossAttentions(weights, "pulid_flux"))

    def term(strength: float = 1.0, **scope: Any) -> BlockTerm:
        halves = torch.randn(2, 1, TOKENS, DIM, generator=generator)
        return BlockTerm(modules, numbers, IdentityTokens(*halves), strength, Scope(**scope))

    def applied(*terms: BlockTerm) -> Any:
        return apply_effects(model, terms).model

    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    return {
        "PuLID for FLUX": applied(term()),
        "PuLID for FLUX with a mask": applied(term(mask=mask)),
        "PuLID for FLUX, two people": applied(term(mask=mask), term(mask=1 - mask)),
        OFF: applied(term(0.0)),
        CLOSED: applied(term(start=0.9999)),
    }
