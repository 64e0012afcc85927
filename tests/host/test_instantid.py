"""InstantID in the real ComfyUI: its golden cases through the host's sampler, and ControlNets with a context of their
own among others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

comfyui = sys.modules["likeness_comfyui"]
HERE = Path(__file__).parent
harness = comfyui.load_module("likeness_conformance", HERE.parent / "conformance" / "harness.py")
official = comfyui.load_module("likeness_official", HERE.parent / "adapters" / "official.py")

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "instantid" and harness.read_metadata(path)["variant"].startswith(("unet", "pipeline"))
]
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")  # SDXL's time ids, in order


# Golden cases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Any:
    return comfyui.load_module("likeness_conformance_instantid", HERE.parent / "conformance/runners/instantid.py")


def prompt(case: Any, row: int) -> Any:
    given = case.inputs
    options = dict(zip(SIZES, given["time_ids"][row].int().tolist(), strict=True))
    return [[given["text_context"][row : row + 1], {"pooled_output": given["pooled"][row : row + 1], **options}]]


def sampled(model: Any, latent: Tensor, sigmas: Tensor, cfg: float, positive: Any, negative: Any) -> Any:
    """The host's sampler from a latent as diffusers has it: epsilon of both halves at every step, the last latent."""
    import comfy.sample
    import comfy.samplers

    found: list[Tensor] = []

    def watch(args: dict) -> list[Tensor]:
        cond, uncond = args["conds_out"]
        sigma = args["sigma"].view(-1, 1, 1, 1)
        found.append(torch.cat([(args["input"] - half) / sigma for half in (uncond, cond)]))
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(watch)
    noise = latent * (sigmas[0] ** 2 + 1).sqrt() / sigmas[0]
    with torch.inference_mode():
        last = comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, positive, negative,
            torch.zeros_like(latent), disable_pbar=True, seed=1,
        )  # fmt: skip
        last = model.model.process_latent_in(last.float()) / (sigmas[-1] ** 2 + 1).sqrt()
    return torch.stack(found), last.clone()


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_case_through_the_host_s_sampler(path, runner, recipes):
    """A pipeline of the official code is DDIM, which is Euler's method in the host's terms."""
    from likeness.adapters.effects import AttentionTerm
    from likeness.injection.comfy import ManagedAdapter, apply_effects, sites_of
    from likeness.injection.comfy.control import controlled
    from likeness.injection.plan import Role, uniform

    case = harness.read_case(path)
    given, config = case.inputs, case.config
    base = recipes.unet_from_diffusers(config["unet"], case.weights_below("unet."))
    sites, adapter = sites_of(base), ManagedAdapter(runner.adapter_of(case))
    tokens = adapter.adapter.encode(given["embedding"].reshape(1, -1, adapter.adapter.id_dim))
    term = AttentionTerm(adapter, tokens, uniform(config["scale"], sites), scope=runner.scope_of(case))
    model = apply_effects(base, [term]).model
    prompts = {Role.UNCOND: prompt(case, 0), Role.COND: prompt(case, 1)}
    if "controlnet" in config:
        net = recipes.controlnet_from_diffusers(config["controlnet"]["config"], case.weights_below("controlnet."))
        picture = given["control_image"].movedim(1, -1)
        prompts = controlled(prompts, net, picture, runner.control_effect(case, tokens))
    sigma_of = base.get_model_object("model_sampling").sigma
    if "timesteps" in given:
        sigmas = sigma_of(torch.cat([given["timesteps"], torch.zeros(1)]).float())
        eps, last = sampled(
            model, given["latent_in"][:1], sigmas, config["guidance_scale"], prompts[Role.COND], prompts[Role.UNCOND]
        )
        outputs = {"eps": eps, "final_latent": last}
    else:
        sigmas = torch.stack([sigma_of(given["timestep"].float()), torch.tensor(0.0)])
        eps, _ = sampled(model, given["latent"], sigmas, 5.0, prompts[Role.COND], prompts[Role.UNCOND])
        outputs = {"eps": eps[0]}
    for name, value in outputs.items():
        torch.testing.assert_close(
            value, case.expected[name], rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )
