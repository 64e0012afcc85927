"""PhotoVerse: one token of a face in the second branch of cross-attention, for SD1.5.

Its LoRA is merged into the weights before the first step and its words are in the prompt, so that no step is slower for
them; both are left out here.
"""

from __future__ import annotations

from typing import Any

import torch

SILENT = ("PhotoVerse, the words alone",)
TEXT_WIDTH = 768  # of SD1.5


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the token of one person; nothing where the text is not SD1.5's."""
    from likeness.adapters.effects import AttentionTerm
    from likeness.adapters.networks import KeyValueSites, build_key_values
    from likeness.adapters.photoverse.fusion import Fusion
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import ManagedAdapter, apply_identity, sites_of
    from likeness.injection.plan import uniform

    sites = sites_of(model)
    if any(site.context_dim != TEXT_WIDTH for site in sites):
        return {}
    generator = torch.Generator().manual_seed(2)

    class Branch(KeyValueSites):
        name = "photoverse"

        def __init__(self) -> None:
            super().__init__()
            shapes = {
                f"{site.slot}.{layer}_ip.weight": (site.width, TEXT_WIDTH)
                for site in sites
                for layer in ("to_k", "to_v")
            }
            self.ip_adapter = build_key_values(
                {key: torch.randn(*shape, generator=generator) / shape[1] ** 0.5 for key, shape in shapes.items()}
            )

    projector = ManagedAdapter(Branch())
    token = torch.randn(1, 1, TEXT_WIDTH, generator=generator)
    halves = IdentityTokens(token, torch.zeros_like(token))

    def applied(gamma: float, sigma: float) -> Any:
        merge = None if gamma == 1 else Fusion(gamma, sigma)
        strength = sigma if merge is None else 1.0
        return apply_identity(model, [AttentionTerm(projector, halves, uniform(strength, sites), merge=merge)])

    return {
        "PhotoVerse": applied(1.0, 1.0),
        "PhotoVerse, gamma 0.8 and sigma 1.5": applied(0.8, 1.5),
        "PhotoVerse, the words alone": applied(1.0, 0.0),
    }
