"""The end-to-end golden cases once more, through ComfyUI's ModelPatcher: same files, same tolerance, the other binding.

The whole host pipeline of one model call runs: wrappers, `cond_or_uncond`, both halves in one batch, weight patches.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.host_call import call
from torch import Tensor

comfyui = sys.modules["likeness_comfyui"]
CONFORMANCE = Path(__file__).parents[1] / "conformance"
harness = comfyui.load_module("likeness_conformance", CONFORMANCE / "harness.py")


def _is_whole_network(path: Path) -> bool:
    variant = harness.read_metadata(path)["variant"]
    return path.parent.name == "ip_adapter" and ("layout" in variant or variant.startswith("two adapters"))


CASES = [path for path in harness.find_cases(harness.golden_folder()) if _is_whole_network(path)]


@pytest.fixture(scope="module")
def runner() -> Any:
    return comfyui.load_module("likeness_conformance_ip_adapter", CONFORMANCE / "runners" / "ip_adapter.py")


def added_vector(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """SDXL's vector of pooled text and sizes for both halves, negative first."""
    if "time_ids" not in given:
        return {}
    sizes = model.model.embedder(given["time_ids"].flatten()).flatten().unsqueeze(0)
    return {"y": torch.cat([torch.cat([given[f"pooled_{half}"], sizes], dim=1) for half in ("uncond", "cond")])}


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_case_through_the_model_patcher(path, runner, recipes):
    from likeness.injection.comfy import ManagedAdapter, apply_effects, apply_identity, sites_of
    from likeness.injection.sites import diffusers_layers

    case = harness.read_case(path)
    base = recipes.unet_from_diffusers(case.config["unet"], case.weights_below("unet."))
    given, config, sites = case.inputs, case.config, sites_of(base)
    assert [[s.slot, f"{s.diffusers_path}.attn2", list(s.key), s.transformer] for s in sites] == config["sites"]
    outputs: dict[str, Tensor] = {}
    if "eps_cond" not in case.expected:
        for name, injections in runner.two_adapters(case, sites).items():
            model = apply_identity(base, injections)
            outputs[name] = call(model, given["sample"], given["timestep"], given["text"], roles=[0])
        expected = {name: case.expected[name] for name in outputs}
    else:
        adapter = runner.adapter_of(case)
        tokens = runner.joined(adapter.encode(runner.evidence_of(case), structure=config.get("s_scale", 1.0)))
        managed = ManagedAdapter(adapter)
        rows: dict[str, list[Tensor]] = {"eps_uncond": [], "eps_cond": []}
        for scale, lora in zip(config["scales"], config.get("lora_scales", [0.0] * len(config["scales"])), strict=True):
            effects: list[Any] = [runner.AttentionTerm(managed, tokens, runner.uniform(scale, sites))]
            if lora:
                effects.append(adapter.lora(diffusers_layers(sites), lora))
            model, changed, _ = apply_effects(base, effects)
            assert changed == (4 * 2 * len(sites) if lora else 0)
            text = torch.cat([given["text_uncond"], given["text_cond"]])
            eps = call(model, given["sample"], given["timestep"], text, roles=[1, 0], **added_vector(base, given))
            rows["eps_uncond"].append(eps[:1])
            rows["eps_cond"].append(eps[1:])
            model.detach()
        outputs = {name: torch.stack(values) for name, values in rows.items()}
        expected = {name: case.expected[name] for name in rows}
    for name, value in expected.items():
        torch.testing.assert_close(
            outputs[name], value, rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )
