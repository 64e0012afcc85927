"""PuLID: its tokens in each of its modes, for SDXL."""

from __future__ import annotations

from typing import Any

import torch

SILENT = ()
TEXT_WIDTH = 2048  # of SDXL


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the tokens of one photo; nothing where the text is not SDXL's."""
    from likeness.adapters.effects import AttentionTerm
    from likeness.adapters.pulid import FIDELITY, NEUTRAL, STYLE, VERSION_1_1, Projections, with_zeros
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import ManagedAdapter, apply_identity, sites_of
    from likeness.injection.plan import uniform

    sites = sites_of(model)
    if any(site.context_dim != TEXT_WIDTH for site in sites):
        return {}
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    weights = {
        f"id_adapter_attn_layers.{site.slot}.id_to_{half}.weight": normal(site.width, TEXT_WIDTH)
        for site in sites
        for half in "kv"
    }
    projector = ManagedAdapter(Projections(weights, "pulid"))

    def applied(mode: Any, n_tokens: int) -> Any:
        tokens = with_zeros(torch.randn(2, n_tokens, TEXT_WIDTH, generator=generator), mode.zeros)
        halves = IdentityTokens(tokens[:1], tokens[1:])
        term = AttentionTerm(projector, halves, uniform(0.8, sites), merge=mode.projection.merge)
        return apply_identity(model, [term])

    return {
        "PuLID neutral": applied(NEUTRAL, 10),
        "PuLID fidelity": applied(FIDELITY, 10),
        "PuLID style": applied(STYLE, 10),
        "PuLID v1.1": applied(VERSION_1_1, 32),
    }
