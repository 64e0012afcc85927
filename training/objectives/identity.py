"""Identity loss: the face in the image a denoiser is heading for should be the person's (MagiCapture).

    L_id = 1 − cos(R(crop(x̂_0)), e),   x̂_0 = decode(ẑ_0)

with R a frozen recogniser and e the recogniser's embedding of the person. Gradients flow through the recogniser, the
crop and the decoder into ẑ_0. Images are (batch, 3, H, W), RGB 0..1; keypoints are (batch, 5, 2) in their pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...faces.align import ARCFACE, Template, invert, transform_points

# Images and the keypoints of the face that counts in each -> embeddings (batch, d), with gradient to the images.
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CropMeasure:
    """A recogniser of crops (batch, 3, side, side), RGB -1..1, on its template."""

    recogniser: Callable[[Tensor], Tensor]
    template: Template = ARCFACE

    def __call__(self, pictures: Tensor, keypoints: Tensor) -> Tensor:
        return self.recogniser((self.template.crops(pictures, keypoints) - 0.5) / 0.5)


def arcface_measure(recogniser: Callable[[Tensor], Tensor]) -> CropMeasure:
    """The measure of a recogniser on the template it names; ArcFace's 112 pixels where it names none."""
    return CropMeasure(recogniser, getattr(recogniser, "template", ARCFACE))


def _template(measure: Measure) -> Template:
    """Which part of a face a measure looks at; it may be a method of a recogniser that says so."""
    return getattr(getattr(measure, "__self__", measure), "template", ARCFACE)


@dataclass(frozen=True)
class Decoder:
    """A VAE's way back to images: `decode` takes latents without the scaling factor to (batch, 3, H, W), -1..1."""

    decode: Callable[[Tensor], Tensor]
    scaling_factor: float
    pixels_per_cell: int

    @classmethod
    def of(cls, vae: Any) -> Decoder:
        """That of a diffusers AutoencoderKL."""
        config = vae.config
        return cls(lambda z: vae.decode(z).sample, config.scaling_factor, 2 ** (len(config.block_out_channels) - 1))

    def picture(self, latents: Tensor) -> Tensor:
        """Images 0..1 of latents as a denoiser sees them. Pixels beyond 0..1 are clamped and get no gradient."""
        return (self.decode(latents / self.scaling_factor) / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class LikenessTarget:
    """Who a sample should look like, and where.

    keypoints: (5, 2) in pixels of the image. embedding: (d,), as the recogniser gives it; its length does not matter.
    """

    keypoints: Tensor
    embedding: Tensor


def identity(pictures: Tensor, keypoints: Tensor, embeddings: Tensor, measure: Measure) -> Tensor:
    """1 − cos(R(crop(x)), e): (batch,), 0..2. embeddings: (batch, d)."""
    return 1 - F.cosine_similarity(measure(pictures, keypoints), embeddings)


@dataclass(frozen=True)
class FaceWindow:
    """A part of the latents, in cells: rows top..bottom, columns left..right, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, latents: Tensor) -> Tensor:
        """(..., h, w) -> (..., bottom − top, right − left)"""
        return latents[..., self.top : self.bottom, self.left : self.right]


def face_window(
    keypoints: Tensor, latent_size: tuple[int, int], scale: int, margin: int = 4, template: Template = ARCFACE
) -> FaceWindow:
    """The latent cells that the recogniser's crop of this face is decoded from, and `margin` more on every side.

    scale: pixels per latent cell. What a decoder computes from the whole image (its norms, its middle attention)
    differs inside a window, so the loss is close to that of the whole image and not equal to it.
    """
    matrix, last = template.matrix(keypoints.detach().double().cpu().numpy()), template.size - 1
    corners = np.array([(0, 0), (last, 0), (0, last), (last, last)], np.float64)
    cells = transform_points(invert(matrix), corners) / scale
    (left, top), (right, bottom) = np.floor(cells.min(0)) - margin, np.ceil(cells.max(0)) + 1 + margin
    rows, columns = latent_size
    top, left = int(np.clip(top, 0, rows - 1)), int(np.clip(left, 0, columns - 1))
    return FaceWindow(top, int(np.clip(bottom, top + 1, rows)), left, int(np.clip(right, left + 1, columns)))


def identity_of_latents(
    z0: Tensor,
    likenesses: list[LikenessTarget | None],
    decoder: Decoder,
    measure: Measure,
    margin: int | None = None,
) -> Tensor:
    """L_id of estimated clean latents (batch, c, h, w): (batch,).

    likenesses: one per sample; None (no face was found, or its timestep is too noisy to tell) gives 0 and is not
    decoded. margin: None decodes whole images; a number decodes only the face's window and that many cells around
    it, which is cheaper by the area left out.
    """
    losses = []
    for latents, likeness in zip(z0, likenesses, strict=True):
        if likeness is None:
            losses.append(latents.new_zeros(()))
            continue
        latents, keypoints = latents.unsqueeze(0), likeness.keypoints
        if margin is not None:
            scale = decoder.pixels_per_cell
            window = face_window(keypoints, (latents.shape[-2], latents.shape[-1]), scale, margin, _template(measure))
            latents = window.cut(latents)
            keypoints = keypoints - keypoints.new_tensor([window.left, window.top]) * scale
        picture = decoder.picture(latents)
        losses.append(identity(picture, keypoints.unsqueeze(0), likeness.embedding.unsqueeze(0), measure)[0])
    return torch.stack(losses)


def below_cap(likenesses: list[LikenessTarget | None], t: Tensor, cap: int) -> list[LikenessTarget | None]:
    """Only the samples whose timestep is below the cap T': of noisier ones x̂_0 is a blur that tells nothing."""
    return [likeness if step < cap else None for likeness, step in zip(likenesses, t.tolist(), strict=True)]
