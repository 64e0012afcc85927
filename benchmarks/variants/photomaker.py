"""PhotoMaker: two prompts, one after the other, in a MODEL that knows when to change. SDXL only.

Its LoRA is merged into the weights before the first step, so that no step is slower for it, and is left out here.
"""

from __future__ import annotations

from typing import Any

import torch

SILENT = ("PhotoMaker, strength 0",)  # those that change nothing
SDXL_TEXT, PHOTOS = 2048, 4


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter: none, because it works through the prompt."""
    return {}


def on_prompts(model: Any, positive: Any, negative: Any, recipes: Any) -> dict[str, tuple[Any, Any, Any]]:
    """name -> MODEL and both prompts."""
    from likeness.adapters.effects import PromptEdit, PromptStates, Scope
    from likeness.adapters.networks import FuseModule
    from likeness.injection.comfy import apply_effects, edited

    [(states, told)] = positive
    if states.shape[-1] != SDXL_TEXT:
        return {}
    torch.manual_seed(3)
    fuse = FuseModule(SDXL_TEXT).eval()
    pictures = torch.randn(1, PHOTOS, SDXL_TEXT, generator=torch.Generator().manual_seed(3))
    fused = PromptStates(fuse.into(states, torch.arange(5, 5 + PHOTOS), pictures), 1.1 * told["pooled_output"])
    plain = PromptEdit(lambda given: given)
    merging = [plain, PromptEdit(lambda _: fused, Scope(0.2, first_step=lambda steps: steps // 2))]

    def ours(effects: Any) -> tuple[Any, Any, Any]:
        return apply_effects(model, effects).model, edited(positive, effects), negative

    return {"PhotoMaker": ours(merging), "PhotoMaker, strength 0": ours([plain])}
