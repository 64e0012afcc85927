"""What a denoiser is given and what it answers in the host's own sampler, as golden cases record it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def watch(model: Any, seen: list[Tensor], said: list[Tensor]) -> None:
    """Note what the denoiser is given and what it answers, negative first."""
    from comfy.patcher_extension import WrappersMP

    def note(executor: Any, x: Tensor, t: Tensor, *rest: Any, **named: Any) -> Tensor:
        denoised = executor(x, t, *rest, **named)
        sigma = t.view(-1, 1, 1, 1)
        options = next(value for value in (*rest, *named.values()) if isinstance(value, dict) and "sigmas" in value)
        order = [options["cond_or_uncond"].index(half) for half in (1, 0)]
        seen.append((x / (sigma**2 + 1).sqrt())[order].clone())
        said.append(((x - denoised) / sigma)[order].clone())
        return denoised

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", note)


def euler(model: Any, positive: Any, negative: Any, given: dict[str, Tensor], guidance: float) -> Tensor:
    """The latents at the end of an Euler run through these sigmas, in the case's own scale.

    The host starts from noise · sqrt(1 + sigma²) only where sigma is its own largest; a case does so always.
    """
    import comfy.samplers
    import torch

    sigmas, noise = given["sigmas"], given["noise"]
    with torch.inference_mode():
        latents = comfy.samplers.sample(
            model,
            noise * (sigmas.max() ** 2 + 1).sqrt() / sigmas.max(),
            positive,
            negative,
            guidance,
            model.load_device,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            model_options=model.model_options,
            latent_image=torch.zeros_like(noise),
            disable_pbar=True,
            seed=1,
        )
    return latents.clone() * model.model.latent_format.scale_factor
