"""PhotoMaker's end-to-end golden cases through ComfyUI's own sampler: LoRA, both prompts, and the merge between steps.

The conditioning is what Identity Prompt makes, with the case's recorded states in place of a CLIP's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import harness
from helpers.sampling import euler, watch
from torch import Tensor

from likeness.adapters.effects import PromptEdit, PromptStates, Scope
from likeness.adapters.photomaker import PhotoMakerOptions

CONFORMANCE = Path(__file__).parents[1] / "conformance"
CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "photomaker" and "e2e" in harness.read_metadata(path)["variant"]
]


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import photomaker

    return photomaker


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_run_through_the_sampler(path, runner, recipes):
    from likeness.injection.comfy import ManagedAdapter, apply_effects, edited

    case = harness.read_case(path)
    config, given = case.config, case.inputs
    base = recipes.unet_from_diffusers(config["unet"], case.weights_below("unet."))
    adapter = ManagedAdapter(runner.adapter_of(case))
    plain = PromptStates(given["prompt_embeds_text_only"], given["pooled_text_only"])
    fused = PromptStates(runner.fused(case, adapter.adapter), given["pooled"])
    first_step = PhotoMakerOptions(merge_step=config["start_merge_step"]).first_step(0.2)
    effects = [
        PromptEdit(lambda _: plain),
        PromptEdit(lambda _: fused, Scope(0.2, first_step=first_step)),
        adapter.adapter.lora(config["lora_scale"]),
    ]
    model, changed, _ = apply_effects(base, effects)
    assert changed == len(adapter.adapter.lora().changes) > 0
    time_ids = given["time_ids"][0].tolist()
    sizes = dict(zip(("height", "width", "crop_h", "crop_w", "target_height", "target_width"), time_ids, strict=True))
    positive = edited([(plain.states, {"pooled_output": plain.pooled, **sizes})], effects)
    negative = [(given["negative_prompt_embeds"], {"pooled_output": given["negative_pooled"], **sizes})]
    seen: list[Tensor] = []
    said: list[Tensor] = []
    watch(model, seen, said)
    latents = euler(model, positive, negative, given, config["guidance_scale"])
    outputs = {
        "latents": latents,
        "model_input": torch.stack(seen),
        "noise_pred": torch.stack(said),
        "updated_prompt_embeds": fused.states,
    }
    for name, value in case.expected.items():
        torch.testing.assert_close(
            outputs[name], value, rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )
