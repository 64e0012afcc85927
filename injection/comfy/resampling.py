"""A window of a picture sampled anew: the prompt as it holds there, and ComfyUI's own sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError

HostConditioning = list[list[Any]]


@dataclass(frozen=True)
class CropWindow:
    """A square of a picture, as shares of its width and height; it may reach beyond."""

    left: float
    top: float
    right: float
    bottom: float

    def holds_the_middle_of(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether the middle of this window lies in that part of the picture."""
        x, y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        return left <= x <= right and top <= y <= bottom

    def cut(self, planes: Tensor, side: int) -> Tensor:
        """What planes (B, C, h, w) of the whole picture, at any resolution, show of it: (B, C, side, side)."""
        centre = self.left + self.right - 1, self.top + self.bottom - 1
        matrix = planes.new_tensor(
            [[self.right - self.left, 0, centre[0]], [0, self.bottom - self.top, centre[1]]], dtype=torch.float32
        )
        grid = F.affine_grid(matrix.expand(len(planes), 2, 3), [len(planes), 1, side, side], align_corners=False)
        return F.grid_sample(planes.float(), grid, padding_mode="border", align_corners=False).to(planes.dtype)


def prompt_in(window: CropWindow, conditioning: HostConditioning, latent: Tensor, side: int) -> HostConditioning:
    """The conditioning as it holds in the window, for a picture of `side` pixels whose latent is given.

    Masks and ControlNets' hints are cut to the window; of prompts with an area those that reach its middle are kept, if
    any do; the first reference latent, the picture that an edit model works on, becomes the window's own.
    """
    here = [pair for pair in conditioning if _reaches(pair[1], window, latent)] or conditioning
    return [[text, _cut_values(values, window, latent, side)] for text, values, *_ in here]


def _reaches(values: dict[str, Any], window: CropWindow, latent: Tensor) -> bool:
    area = values.get("area")
    if not area or area[0] != "percentage":
        return True  # of areas in pixels nobody knows how large the whole picture was
    high, wide, top, left = area[1:]
    return window.holds_the_middle_of(left, top, left + wide, top + high)


def _cut_values(values: dict[str, Any], window: CropWindow, latent: Tensor, side: int) -> dict[str, Any]:
    of_area = ("area", "strength") if "area" in values else ()
    values = {key: value for key, value in values.items() if key not in of_area}
    if isinstance(values.get("mask"), Tensor):
        mask = values["mask"]
        mask = mask[None] if mask.ndim == 2 else mask
        values["mask"] = window.cut(mask[:, None], side)[:, 0]
    if values.get("control") is not None:
        values["control"] = _cut_hints(values["control"], window, side)
    if values.get("reference_latents"):
        values["reference_latents"] = [latent, *values["reference_latents"][1:]]
    return values


def _cut_hints(control: Any, window: CropWindow, side: int) -> Any:
    """A copy of a chain of ControlNets whose hints show the window."""
    copied = control.copy()
    if isinstance(getattr(copied, "cond_hint_original", None), Tensor):
        copied.cond_hint_original = window.cut(copied.cond_hint_original, side)
    before = getattr(control, "previous_controlnet", None)
    if before is not None:
        copied.set_previous_controlnet(_cut_hints(before, window, side))
    return copied


@dataclass(frozen=True, eq=False)
class Sampling:
    """What ComfyUI's sampler needs for every window."""

    model: Any
    positive: HostConditioning
    negative: HostConditioning
    vae: Any
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float

    def check(self) -> None:
        """LikenessError unless the parts are what they are called, and belong together."""
        if not hasattr(self.vae, "encode") or not hasattr(self.vae, "decode"):
            raise LikenessError(f"The input vae holds a {type(self.vae).__name__}: connect the checkpoint's VAE.")
        if not hasattr(self.model, "get_model_object"):
            raise LikenessError(f"The input model holds a {type(self.model).__name__}: connect a MODEL.")
        wanted = self.model.get_model_object("latent_format").latent_channels
        given = getattr(self.vae, "latent_channels", wanted)
        if wanted != given:
            raise LikenessError(
                f"VAE and MODEL do not belong together: latents have {given} channels and the model reads {wanted}. "
                "Connect the VAE of the model's own checkpoint."
            )

    def again(self, pixels: Tensor, window: CropWindow, seed: int, mask: Tensor | None = None) -> Tensor:
        """The window (1, S, S, 3) sampled anew from its own latent; where the mask (S, S) is 0 it stays as it is."""
        import comfy.sample
        import comfy.utils
        import latent_preview

        side = pixels.shape[1]
        latent = self.vae.encode(pixels)
        made = comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(latent, seed),
            self.steps,
            self.cfg,
            self.sampler,
            self.scheduler,
            prompt_in(window, self.positive, latent, side),
            prompt_in(window, self.negative, latent, side),
            latent,
            denoise=self.denoise,
            noise_mask=None if mask is None else mask[None],
            callback=latent_preview.prepare_callback(self.model, self.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        decoded = self.vae.decode(made).float().cpu()
        decoded = decoded.reshape(-1, *decoded.shape[-3:])[:1, ..., :3]  # VAEs of videos give frames
        if decoded.shape[1:3] == (side, side):
            return decoded
        planes = F.interpolate(decoded.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
        return planes.permute(0, 2, 3, 1)  # a VAE that cut what its latents cannot hold
