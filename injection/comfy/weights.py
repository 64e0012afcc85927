"""Changes of the denoiser's own weights, as patches of a MODEL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import WeightDelta
from ...weights.lora import LoraPair

_DELTAS = "likeness_deltas"  # our attachment: id -> strength of the changes that a MODEL has


def add_delta(model: Any, delta: WeightDelta) -> int:
    """Add a change of weights to a MODEL, in place; returns the number of weights it changes.

    One that the model already has is raised to the greater of both strengths, not added twice, so that several people
    can use one adapter.
    """
    import comfy.lora

    applied: dict[str, float] = dict(model.attachments.get(_DELTAS, {}))
    missing = delta.strength - applied.get(delta.id, 0.0)
    if missing == 0 or (delta.id in applied and missing < 0):
        return 0
    lora, targets, full, names = {}, {}, {}, _weight_names(model)
    for path, change in delta.changes.items():
        if isinstance(change, LoraPair):
            tensors = {"lora_up.weight": change.up, "lora_down.weight": change.down, "lora_mid.weight": change.mid}
            lora |= {f"{path}.{name}": tensor for name, tensor in tensors.items() if tensor is not None}
            if change.alpha:
                lora[f"{path}.alpha"] = torch.tensor(change.alpha)
            targets[path] = names[f"{path}.weight"]
        else:
            full[names[f"{path}.weight"]] = (change,)
    patches = {**comfy.lora.load_lora(lora, targets), **full}
    changed = model.add_patches(patches, missing)
    model.attachments[_DELTAS] = {**applied, delta.id: delta.strength}
    return len(changed)


def has_elsewhere(model: Any, delta: WeightDelta) -> bool:
    """Whether another node has put this change onto the MODEL, as from the LoRA file published beside an adapter."""
    if delta.id in model.attachments.get(_DELTAS, {}):
        return False
    path, change = next(iter(delta.changes.items()))
    if not isinstance(change, LoraPair):
        return False
    patches = model.patches.get(_weight_names(model)[f"{path}.weight"], [])
    ups = [getattr(patch[1], "weights", [None])[0] for patch in patches]
    return any(isinstance(up, Tensor) and torch.equal(up.to("cpu", change.up.dtype), change.up.cpu()) for up in ups)


def _weight_names(model: Any) -> dict[str, str]:
    """diffusers' name of a weight of the denoiser -> the host's, as `add_patches` takes it."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {theirs: f"diffusion_model.{ours}" for theirs, ours in names.items()}
