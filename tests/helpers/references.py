"""Photos that are latents already, and one call of a host's DiT that attends to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likeness.adapters.effects import Cells, ReferencePhoto


class Latents:
    """Photos of one person that need no VAE."""

    def __init__(self, *latents: Tensor, faces: Sequence[Tensor | None] = ()) -> None:
        faces = [*faces, *[None] * (len(latents) - len(faces))]
        self.photos = [ReferencePhoto(latent, face) for latent, face in zip(latents, faces, strict=True)]
        self.asked: list[tuple[Cells, int]] = []

    def __len__(self) -> int:
        return len(self.photos)

    def encoded(self, target: Cells, references: int) -> list[ReferencePhoto]:
        self.asked.append((target, references))
        return self.photos


def velocity(model: Any, x: Tensor, t: Tensor, text: Tensor, guidance: Tensor | None = None, **options: Any) -> Tensor:
    """What the denoiser predicts for noisy latents at flow time t, in a whole sampling run of the host.

    options: of the positive conditioning.
    """
    import comfy.sample
    import comfy.samplers

    found = []

    def once(denoiser: Any, noise: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        found.append((x - denoiser(x, t.to(x), **(extra_args or {}))) / t.to(x).view(-1, *[1] * (x.ndim - 1)))
        return noise

    told = {**options, **({} if guidance is None else {"guidance": float(guidance[0])})}
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, torch.zeros_like(x), 1.0, comfy.samplers.KSAMPLER(once), torch.tensor([1.0, 0.0]),
            [[text, told]], [[text, dict(told)]], torch.zeros_like(x), disable_pbar=True,
        )  # fmt: skip
    return found[0].clone()
