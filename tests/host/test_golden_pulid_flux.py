"""PuLID's recorded runs on FLUX once more, through ComfyUI's own Flux: one call of it, and whole sampling runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import harness
from torch import Tensor

CASES = [
    (path, harness.read_metadata(path)["variant"])
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "pulid" and harness.read_metadata(path)["variant"] in ("flux transformer", "flux sampling")
]


def recorded(variant: str) -> Any:
    paths = [path for path, found in CASES if found == variant]
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import pulid

    return pulid


def model_of(recipes: Any, case: Any) -> Any:
    """The case's FLUX as a MODEL of the host, which counts latent channels where the official code counts tokens'."""
    channels = case.config["flux"]["in_channels"] // 4
    model = recipes.tiny_flux(**{**case.config["flux"], "in_channels": channels, "out_channels": channels})
    net = model.model.diffusion_model
    renamed = {}
    for key, value in case.weights_below("flux.").items():
        other = key.replace("_norm.scale", "_norm.weight")  # newer hosts call it so
        renamed[key if key in net.state_dict() else other] = value
    net.load_state_dict(renamed)
    return model


def unpacked(tokens: Tensor, grid: list[int]) -> Tensor:
    """(batch, h·w, 4·channels) -> latents (batch, channels, 2h, 2w)"""
    cut = tokens.unflatten(1, tuple(grid)).unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
    return cut.flatten(4, 5).flatten(2, 3)


def packed(latents: Tensor, grid: list[int]) -> Tensor:
    """The other way round."""
    cut = latents.unflatten(2, (grid[0], 2)).unflatten(4, (grid[1], 2)).permute(0, 2, 4, 1, 3, 5)
    return cut.flatten(3).flatten(1, 2)


@recorded("flux transformer")
def test_one_call_of_the_transformer(path: Path, recipes, runner):
    from likeness.injection.comfy import apply_effects, dit_of

    case = harness.read_case(path)
    model, given, grid = model_of(recipes, case), case.inputs, case.config["grid"]
    for name, strength in (("out_no_id", 0.0), ("out_id", 1.0), ("out_weighted", case.config["id_weight"])):
        painted = apply_effects(model, [runner.flux_term(case, dit_of(model), strength)]).model
        options = {**painted.model_options["transformer_options"], "wrappers": painted.wrappers}
        for row, sigma in enumerate(given["timesteps"]):
            x, extra = unpacked(given["img"][row : row + 1], grid), {}
            if "guidance" in given:
                extra["guidance"] = given["guidance"][row : row + 1]
            with torch.inference_mode():
                denoised = painted.model.apply_model(
                    x, sigma[None], c_crossattn=given["txt"][row : row + 1], y=given["y"][row : row + 1],
                    transformer_options={**options, "cond_or_uncond": [0]}, **extra,
                )  # fmt: skip
            found = packed((x - denoised) / sigma, grid)[0]
            torch.testing.assert_close(found, case.expected[name][row], rtol=case.rtol, atol=case.atol)


def guided_below(sigma: float, scale: float) -> Callable[[dict], Tensor]:
    """Guidance of this strength, below a noise level."""

    def guide(args: dict) -> Tensor:
        weight = 1.0 if float(args["sigma"].flatten()[0]) >= sigma else scale
        return args["uncond"] + weight * (args["cond"] - args["uncond"])

    return guide


@recorded("flux sampling")
def test_whole_runs_of_the_sampler(path: Path, recipes, runner):
    """The window by steps, and guidance with the negative prompt and nobody's tokens from a step on."""
    import comfy.sample

    from likeness.injection.comfy import apply_effects

    case = harness.read_case(path)
    model, given, config = model_of(recipes, case), case.inputs, case.config
    prompts = [
        [[given[f"{half}txt"], {"pooled_output": given[f"{half}y"], "guidance": config["guidance"]}]]
        for half in ("", "neg_")
    ]
    noise = unpacked(given["img"], config["grid"])
    for name, (late, guided) in runner.RUNS.items():
        term, run, scale, first = runner.sampled(case, config["start_step"] if late else 0, guided)
        painted = apply_effects(model, [term]).model
        guide = guided_below(run.sigmas[first - 1] if first else 2.0, scale)
        painted.set_model_sampler_cfg_function(guide, disable_cfg1_optimization=True)
        with torch.inference_mode():
            found = comfy.sample.sample(
                painted, noise, len(given["schedule"]) - 1, scale, "euler", "simple", *prompts,
                torch.zeros_like(noise), sigmas=given["schedule"], disable_pbar=True, seed=1,
            )  # fmt: skip
        latents = packed(painted.model.process_latent_in(found), config["grid"])
        torch.testing.assert_close(latents, case.expected[name], rtol=case.rtol, atol=case.atol)
