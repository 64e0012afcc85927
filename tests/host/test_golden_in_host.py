"""The end-to-end golden cases once more, through ComfyUI's ModelPatcher: same files, same tolerance, the other binding.

The whole host pipeline of one model call runs: wrappers, `cond_or_uncond`, both halves in one batch, weight patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import harness
from helpers.host_call import call
from torch import Tensor

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def _is_whole_network(path: Path) -> bool:
    variant = harness.read_metadata(path)["variant"]
    return path.parent.name == "ip_adapter" and ("layout" in variant or variant.startswith("two adapters"))


CASES = [path for path in harness.find_cases(harness.golden_folder()) if _is_whole_network(path)]
PULID = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "pulid" and "end to end" in harness.read_metadata(path)["variant"]
]


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import ip_adapter

    return ip_adapter


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


@pytest.mark.parametrize("path", PULID, ids=[path.stem for path in PULID])
def test_pulids_modes_through_the_model_patcher(path, recipes):
    """Every row of the batch has a latent, a timestep, a text and tokens of its own; the first is unconditioned."""
    from conformance.runners import pulid

    from likeness.injection.comfy import apply_identity, sites_of

    case = harness.read_case(path)
    base = recipes.unet_from_diffusers(case.config["unet"], case.weights_below("unet."))
    given, sites, projector = case.inputs, sites_of(base), pulid.projector_of(case)
    for name in ("no_id", *case.config["modes"]):
        for rest, tokens in pulid.chunks_of(case):
            batch = [0, rest.start]
            model = apply_identity(base, pulid.terms_of(case, name, projector, tokens, sites))
            for roles, rows in (([1, 0], batch), ([0, 1], batch[::-1]), ([0], batch[1:]), ([1], batch[:1])):
                eps = _rows(model, given, roles, rows)
                wanted = case.expected[f"eps_{name}"][rows]
                torch.testing.assert_close(eps, wanted, rtol=case.rtol, atol=case.atol)


def _rows(model: Any, given: dict[str, Tensor], roles: list[int], rows: list[int]) -> Tensor:
    """epsilon of one host call over some rows of a case's batch."""
    base = model.model
    sigma = base.model_sampling.sigma(given["timestep"][rows].float())
    x = given["sample"][rows] * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
    extra = {}
    if "time_ids" in given:
        sizes = torch.stack([base.embedder(given["time_ids"][row]).flatten() for row in rows])
        extra["y"] = torch.cat([given["text_embeds"][rows], sizes], dim=1)
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "cond_or_uncond": roles}
    with torch.inference_mode():
        denoised = base.apply_model(x, sigma, c_crossattn=given["text"][rows], transformer_options=options, **extra)
    return ((x - denoised) / sigma.view(-1, 1, 1, 1)).clone()
