"""BLIP-Diffusion's golden cases through ComfyUI: the vectors in its CLIP, the file's UNet as patches, its sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import harness
from helpers.sampling import watch
from torch import Tensor

from likeness.adapters.blip_diffusion import BlipDiffusion
from likeness.adapters.text_encoder import Token
from likeness.training.base.noise import NoiseSchedule


def cases(part: str) -> Any:
    found = [
        path
        for path in harness.find_cases(harness.golden_folder())
        if path.parent.name == "blip_diffusion" and part in harness.read_metadata(path)["variant"]
    ]
    return pytest.mark.parametrize("path", found, ids=[path.stem for path in found])


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import blip_diffusion

    return blip_diffusion


def states(clip: Any, case: Any, ids: Tensor, vectors: Tensor | None = None) -> Tensor:
    """(n, length, width): what the host's CLIP makes of ids, with vectors at the case's place."""
    from likeness.injection.comfy import ComfyTextEncoder

    encoder, rows = ComfyTextEncoder(clip), []
    for number, row in enumerate(ids.tolist()):
        window = [Token(one) for one in row]
        if vectors is not None:
            start = case.config["ctx_begin_pos"]
            window[start:start] = [Token(vector) for vector in vectors[number]]
        rows.append(encoder.encode({"clip_l": [window]}).states)
    return torch.cat(rows)


def close(case: Any, **found: Tensor) -> None:
    for name, value in found.items():
        torch.testing.assert_close(
            value, case.expected[name], rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@cases("text_encoder")
def test_vectors_stand_in_the_hosts_clip(path, recipes):
    case = harness.read_case(path)
    clip, given = recipes.clip_from_transformers(case.config["text"], case.weights), case.inputs
    close(case, hidden=states(clip, case, given["input_ids"], given["ctx_embeddings"]))
    if "negative_input_ids" in given:
        close(case, negative_hidden=states(clip, case, given["negative_input_ids"]))


@cases("e2e")
def test_golden_run_through_the_sampler(path, runner, recipes):
    """The MODEL is another one: what paints is the file's UNet, as patches."""
    import comfy.samplers

    from likeness.injection.comfy import ManagedAdapter, apply_effects

    case = harness.read_case(path)
    config, given = case.config, case.inputs
    own = case.weights_below("unet.")
    random = torch.Generator().manual_seed(5)
    others = {key: torch.randn(value.shape, generator=random) for key, value in own.items()}
    base = recipes.unet_from_diffusers(config["unet"], others)
    adapter = ManagedAdapter(BlipDiffusion(runner.contents_of(case), "golden"))
    vectors = adapter.adapter.encode(*runner.read_images(case))
    clip = recipes.clip_from_transformers(config["text"], case.weights_below("text_encoder."))
    positive = states(clip, case, given["prompt_ids"], vectors)
    negative = states(clip, case, given["negative_ids"])
    model, changed, _ = apply_effects(base, [adapter.adapter.unet()])
    assert changed == len(own)

    alphas = NoiseSchedule.scaled_linear().alphas_cumprod
    at = torch.cat([alphas[given["timesteps"]], alphas[:1]])  # DDIM's last level is not 0 here
    sigmas, noise = ((1 - at) / at).sqrt(), given["noise"]
    seen: list[Tensor] = []
    said: list[Tensor] = []
    watch(model, seen, said)
    with torch.inference_mode():
        latents = comfy.samplers.sample(
            model,
            noise * (sigmas[0] ** 2 + 1).sqrt() / sigmas[0],
            [(positive, {})],
            [(negative, {})],
            config["guidance_scale"],
            model.load_device,
            comfy.samplers.sampler_object("euler"),  # which is DDIM without noise, in the host's variables
            sigmas,
            model_options=model.model_options,
            latent_image=torch.zeros_like(noise),
            disable_pbar=True,
            seed=1,
        )
    latents = latents.clone() * model.model.latent_format.scale_factor / (sigmas[-1] ** 2 + 1).sqrt()
    close(
        case,
        ctx_embeddings=vectors,
        encoder_hidden_states=torch.cat([negative, positive]),
        model_input=torch.stack(seen),
        noise_pred=torch.stack(said),
        latents=latents,
    )
