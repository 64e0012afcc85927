"""One call of a host's denoiser, as a sampler makes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def call(model: Any, sample: Tensor, timestep: Tensor, text: Tensor, roles: list[int], **extra: Tensor) -> Tensor:
    """epsilon of one host call whose batch holds one chunk per role; `sample` is what the network itself sees."""
    import comfy.model_management as mm

    base = model.model
    mm.load_models_gpu([model])
    sigma = base.model_sampling.sigma(timestep.float()).expand(len(roles))
    x = (sample * (sigma[0] ** 2 + 1).sqrt()).expand(len(roles), -1, -1, -1)
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "cond_or_uncond": roles}
    with torch.inference_mode():
        denoised = base.apply_model(x, sigma, c_crossattn=text, transformer_options=options, **extra)
    return ((x - denoised) / sigma.view(-1, 1, 1, 1)).clone()
