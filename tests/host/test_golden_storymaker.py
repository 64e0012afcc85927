"""StoryMaker's whole networks through ComfyUI's ModelPatcher: weight patches, wrappers, both halves in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import harness
from helpers.host_call import call

CONFORMANCE = Path(__file__).parents[1] / "conformance"
CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "storymaker" and harness.read_metadata(path)["variant"] == "unet"
]


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import storymaker

    return storymaker


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
@pytest.mark.parametrize("halves", ["both", "one"])
def test_golden_case_through_the_model_patcher(path, halves, runner, recipes):
    """halves: of guidance, in one batch, or the conditioned one alone, as with a CFG of 1."""
    from likeness.adapters.effects import AttentionTerm
    from likeness.injection.comfy import ManagedAdapter, apply_effects, sites_of
    from likeness.injection.plan import uniform
    from likeness.injection.sites import diffusers_layers

    case = harness.read_case(path)
    given, config = case.inputs, case.config
    base = recipes.unet_from_diffusers(config["unet"], case.weights_below("unet."))
    sites = sites_of(base)
    adapter = runner.adapter_of(case)
    term = AttentionTerm(ManagedAdapter(adapter), runner.tokens_of(case, adapter), uniform(config["scale"], sites))
    model, changed, _ = apply_effects(base, [term, adapter.lora(diffusers_layers(sites), config["lora_scale"])])
    assert changed == 4 * len(config["attn_order"])
    sizes = torch.stack([base.model.embedder(ids).flatten() for ids in given["time_ids"]])
    y = torch.cat([given["pooled"], sizes], dim=1)
    rows = slice(None) if halves == "both" else slice(1, 2)
    eps = call(
        model, given["latent"], given["timestep"], given["text_context"][rows],
        roles=[1, 0] if halves == "both" else [0], y=y[rows],
    )  # fmt: skip
    torch.testing.assert_close(eps, case.expected["eps"][rows], rtol=case.rtol, atol=case.atol)
    model.detach()
