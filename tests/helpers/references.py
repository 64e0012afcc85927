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
    return velocities(model, [(x, t)], text, guidance, **options)[0]


def velocities(
    model: Any, steps: Sequence[tuple[Tensor, Tensor]], text: Tensor, guidance: Tensor | None = None, **options: Any
) -> list[Tensor]:
    """The same for several steps (x, t) of one run."""
    import comfy.sample
    import comfy.samplers

    found, empty = [], torch.zeros_like(steps[0][0])

    def once(denoiser: Any, noise: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        for x, t in steps:
            found.append((x - denoiser(x, t.to(x), **(extra_args or {}))) / t.to(x).view(-1, *[1] * (x.ndim - 1)))
        return noise

    told = {**options, **({} if guidance is None else {"guidance": float(guidance[0])})}
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, empty, 1.0, comfy.samplers.KSAMPLER(once), torch.tensor([1.0, 0.0]),
            [[text, told]], [[text, dict(told)]], empty, disable_pbar=True,
        )  # fmt: skip
    return [one.clone() for one in found]


class FakeVae:
    """A VAE of the host's shape whose latents are means of pixels, so that what was encoded can be told from them."""

    def __init__(self, channels: int = 16, frames: bool = True, pixels: int = 8) -> None:
        self.latent_channels, self.latent_dim, self.pixels = channels, 3 if frames else 2, pixels
        self.encoded: list[tuple[int, int]] = []

    def encode(self, images: Tensor) -> Tensor:
        """(1, h, w, 3) -> (1, C, (1,) h / pixels, w / pixels)"""
        self.encoded.append((images.shape[1], images.shape[2]))
        means = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), self.pixels) * 4 - 2
        latent = means.repeat(1, -(-self.latent_channels // 3), 1, 1)[:, : self.latent_channels]
        return latent.unsqueeze(2) if self.latent_dim == 3 else latent

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (batch, h · pixels, w · pixels, 3)"""
        latents = latents.squeeze(2) if latents.ndim == 5 else latents
        large = torch.nn.functional.interpolate(latents[:, :3].float(), scale_factor=float(self.pixels))
        return large.movedim(1, -1).add(2).div(4).clamp(0, 1)


class FakeClip:
    """A CLIP with the tokenizer of Krea 2, or of Qwen-Image, that keeps what it was given."""

    def __init__(self, width: int, has_eyes: bool = True, encoder: str = "qwen3vl_4b") -> None:
        from importlib import import_module
        from types import SimpleNamespace

        network = SimpleNamespace(**({"visual": object()} if has_eyes else {}))
        self.cond_stage_model = SimpleNamespace(**{encoder: SimpleNamespace(transformer=network)})
        self.width, self.encoder = width, encoder
        module, name = ("krea2", "Krea2Tokenizer") if encoder == "qwen3vl_4b" else ("qwen_image", "QwenImageTokenizer")
        self.tokenizer = getattr(import_module(f"comfy.text_encoders.{module}"), name)()
        self.given: list[tuple[str, list[Tensor], str]] = []
        self.tokens: list[list[Any]] = []

    def tokenize(self, text: str, images: Sequence[Tensor] = (), llama_template: str = "", **_: Any) -> Any:
        """See the host's CLIP."""
        self.given.append((text, list(images), llama_template))
        return self.tokenizer.tokenize_with_weights(text, images=list(images), llama_template=llama_template or None)

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        """States that depend on the length alone."""
        [row] = tokens[self.encoder]
        self.tokens.append([pair[0] if isinstance(pair[0], int) else "image" for pair in row])
        generator = torch.Generator().manual_seed(len(row))
        return [[torch.randn(1, 7, self.width, generator=generator), {}]]
