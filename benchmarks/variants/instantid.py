"""InstantID: 16 tokens at every site, and IdentityNet beside the same ControlNet as the host applies it. SDXL only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

SILENT = ("InstantID, strength 0",)  # those that change nothing
SDXL_TEXT = 2048


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter."""
    found = _instantid(model)
    if found is None:
        return {}
    from likeness.adapters.effects import Scope
    from likeness.adapters.system import Request
    from likeness.injection.comfy import apply_effects, request_layout

    adapter, person = found
    mask = torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(1))

    def applied(strength: float = 0.8, **scope: Any) -> Any:
        request = Request(*request_layout(model), strength, Scope(**scope), person)
        return apply_effects(model, adapter.effects(request)).model

    return {
        "InstantID": applied(),
        "InstantID + mask": applied(mask=mask),
        "InstantID, strength 0": applied(strength=0.0),
    }


def on_prompts(model: Any, positive: Any, negative: Any, recipes: Any) -> dict[str, tuple[Any, Any, Any]]:
    """name -> MODEL and both prompts, with a ControlNet of the MODEL's own layout."""
    found = _instantid(model)
    if found is None:
        return {}
    from likeness.adapters.effects import ControlContext, Scope
    from likeness.injection.comfy.control import controlled
    from likeness.injection.plan import Role

    adapter, person = found
    config = model.model.model_config.unet_config
    net = recipes.controlnet(
        {key: value for key, value in config.items() if key not in ("dtype", "num_heads", "num_head_channels")},
        num_heads=config["num_heads"],
        num_head_channels=config["num_head_channels"],
    )
    picture = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(2))
    tokens = adapter.adapter.encode(person.embeddings.unsqueeze(0))
    mask = torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(1))

    def ours(**scope: Any) -> tuple[Any, Any, Any]:
        effect = ControlContext("InstantID", tokens, 0.8, Scope(**scope))
        prompts = controlled({Role.COND: positive, Role.UNCOND: negative}, net, picture, effect)
        return model, prompts[Role.COND], prompts[Role.UNCOND]

    node = import_module("nodes").ControlNetApplyAdvanced()  # of the host
    hosts = node.apply_controlnet(positive, negative, net, picture, 0.8, 0.0, 1.0)
    return {"ControlNet alone": (model, *hosts), "IdentityNet": ours(), "IdentityNet + mask": ours(mask=mask)}


def _instantid(model: Any) -> tuple[Any, Any] | None:
    """The adapter with random weights, and a person; None for another base model."""
    from likeness.adapters.instantid import InstantID
    from likeness.faces import Identity
    from likeness.injection.comfy import ManagedAdapter, sites_of

    from .ip_adapter import official_weights

    sites = sites_of(model)
    if sites[0].context_dim != SDXL_TEXT:
        return None
    groups = official_weights(sites, "instantid")
    flat = {f"{group}.{key}": value for group, part in groups.items() for key, value in part.items()}
    generator = torch.Generator().manual_seed(1)
    none = torch.zeros(0, 512, 512, 3, dtype=torch.uint8)
    person = Identity(
        name="Ada", recogniser="antelopev2", embeddings=20 * torch.randn(1, 512, generator=generator),
        weights=torch.ones(1), aligned=torch.zeros(0, 224, 224, 3, dtype=torch.uint8), portraits=none,
        heads=torch.zeros(1, 512, 512, 3, dtype=torch.uint8), keypoints=torch.zeros(0, 5, 2), boxes=torch.zeros(1, 4),
        photo_sizes=torch.full((1, 2), 512),
    )  # fmt: skip
    return ManagedAdapter(InstantID(flat, "ip-adapter.bin")), person
