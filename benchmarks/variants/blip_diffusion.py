"""BLIP-Diffusion: another prompt, in an untouched MODEL. SD1.5 only.

The UNet that a tuned subject brings is merged into the weights before the first step, and is left out here.
"""

from __future__ import annotations

from typing import Any

import torch

SILENT = ("BLIP-Diffusion, strength 0",)  # those that change nothing
SD15_TEXT = 768


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter: none, because it works through the prompt."""
    return {}


def on_prompts(model: Any, positive: Any, negative: Any, recipes: Any) -> dict[str, tuple[Any, Any, Any]]:
    """name -> MODEL and both prompts."""
    from likeness.adapters.effects import PromptEdit, PromptStates
    from likeness.injection.comfy import apply_effects, edited

    [(states, _)] = positive
    if states.shape[-1] != SD15_TEXT:
        return {}
    subject = PromptStates(torch.randn(states.shape, generator=torch.Generator().manual_seed(5)))
    plain = PromptEdit(lambda given: given)

    def ours(effects: Any) -> tuple[Any, Any, Any]:
        return apply_effects(model, effects).model, edited(positive, effects), negative

    return {
        "BLIP-Diffusion": ours([plain, PromptEdit(lambda _: subject)]),
        "BLIP-Diffusion, strength 0": ours([plain]),
    }
