"""FastComposer: two prompts, one after the other, in a MODEL that knows when to change. SD1.5 only.

Its UNet is merged into the weights before the first step, so that no step is slower for it, and is left out here.
"""

from __future__ import annotations

from typing import Any

import torch

SILENT = ("FastComposer, strength 0",)  # those that change nothing
SD15_TEXT = 768
NOUNS = (3, 7)  # places of two people's words


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter: none, because it works through the prompt."""
    return {}


def on_prompts(model: Any, positive: Any, negative: Any, recipes: Any) -> dict[str, tuple[Any, Any, Any]]:
    """name -> MODEL and both prompts."""
    from likeness.adapters.effects import PromptEdit, PromptStates, Scope
    from likeness.adapters.networks import FuseModule
    from likeness.injection.comfy import apply_effects, edited

    [(states, told)] = positive
    if states.shape[-1] != SD15_TEXT:
        return {}
    torch.manual_seed(3)
    fuse = FuseModule(SD15_TEXT).eval()
    people = torch.randn(1, len(NOUNS), SD15_TEXT, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        fused = PromptStates(fuse.into(states, torch.tensor(NOUNS), people), told.get("pooled_output"))
    plain = PromptEdit(lambda given: given)
    composing = [plain, PromptEdit(lambda _: fused, Scope(0.3, first_step=lambda steps: steps // 2))]

    def ours(effects: Any) -> tuple[Any, Any, Any]:
        return apply_effects(model, effects).model, edited(positive, effects), negative

    return {"FastComposer": ours(composing), "FastComposer, strength 0": ours([plain])}
