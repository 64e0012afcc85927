"""FastComposer's end-to-end golden cases through ComfyUI's own sampler: its UNet onto another one, both prompts, and
the border between steps.

The conditioning is what Identity Prompt makes, with the case's recorded states in place of a CLIP's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import harness
from helpers.sampling import euler, watch
from torch import Tensor

from likeness.adapters.effects import PromptEdit, PromptStates, Scope
from likeness.adapters.fastcomposer import FastComposer, FastComposerOptions

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "fastcomposer" and "e2e" in harness.read_metadata(path)["variant"]
]


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import fastcomposer

    return fastcomposer


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_run_through_the_sampler(path, runner, recipes):
    from likeness.injection.comfy import ManagedAdapter, apply_effects, edited

    case = harness.read_case(path)
    config, given = case.config, case.inputs
    other = {key: value.roll(1, 0) for key, value in case.weights_below("unet.").items()}
    base = recipes.unet_from_diffusers(config["unet"], other)
    adapter = ManagedAdapter(FastComposer(case.weights, "golden", runner.head_width(config))).adapter
    plain, text = PromptStates(given["text_only_embeds"]), PromptStates(runner.augmented(case))
    share = 1 - config["alpha"]
    scope = Scope(share, first_step=FastComposerOptions().first_step(share))
    effects = [PromptEdit(lambda _: plain), PromptEdit(lambda _: text, scope), adapter.unet()]
    model, changed, _ = apply_effects(base, effects)
    assert changed == len(other)
    seen: list[Tensor] = []
    said: list[Tensor] = []
    watch(model, seen, said)
    positive = edited([(plain.states, {})], effects)
    latents = euler(model, positive, [(given["negative_embeds"], {})], given, config["guidance_scale"])
    outputs = {
        "latents": latents,
        "model_input": torch.stack(seen),
        "noise_pred": torch.stack(said),
        "augmented_embeds": text.states,
    }
    for name, value in case.expected.items():
        torch.testing.assert_close(
            outputs[name], value, rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )
