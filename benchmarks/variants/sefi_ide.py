"""SeFi-IDE: another prompt in every stage, with states of its own for keys and for values."""

from __future__ import annotations

from typing import Any

import torch

SILENT = ("SeFi-IDE, strength 0",)  # those that change nothing
STAGES = 5


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter: none, because it works through the prompt."""
    return {}


def on_prompts(model: Any, positive: Any, negative: Any, recipes: Any) -> dict[str, tuple[Any, Any, Any]]:
    """name -> MODEL and both prompts."""
    from likeness.adapters.effects import PromptEdit
    from likeness.adapters.sefi_ide.prompt import parts_of, reading
    from likeness.injection.comfy import apply_effects, edited

    [(states, _)] = positive
    random = torch.Generator().manual_seed(3)

    def near() -> torch.Tensor:
        return states + 0.1 * torch.randn(states.shape, generator=random)

    stages = [reading(near(), near(), *part) for part in parts_of([STAGES])]

    def ours(effects: Any) -> tuple[Any, Any, Any]:
        return apply_effects(model, effects).model, edited(positive, effects), negative

    return {"SeFi-IDE": ours(stages), "SeFi-IDE, strength 0": ours([PromptEdit(lambda given: given)])}
