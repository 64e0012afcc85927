"""A window of an image sampled anew: prompt and identities as they hold there, and ComfyUI's own sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapters.effects import Scope
from ...errors import LikenessError
from .apply import sites_of, with_scopes

HostConditioning = list[list[Any]]
_LOOK = 64  # pixels of a window in which a mask is looked for
_OF_MASK = ("mask", "mask_strength", "set_area_to_bounds")


@dataclass(frozen=True)
class CropWindow:
    """A square of an image, as shares of its width and height; it may reach beyond.

    image: which image of a batch of `images` it is cut from. Masks, hints and prompts may have a row for each.
    """

    left: float
    top: float
    right: float
    bottom: float
    image: int = 0
    images: int = 1

    def holds_the_middle_of(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether the middle of this window lies in that part of the image."""
        x, y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        return left <= x <= right and top <= y <= bottom

    def row(self, rows: Tensor) -> Tensor:
        """The row (1, ...) of this image; the last stands in for those missing."""
        number = min(self.image, len(rows) - 1)
        return rows[number : number + 1]

    def cut(self, planes: Tensor, side: int) -> Tensor:
        """What planes (B, ..., h, w) of the whole images, at any resolution, show of it: (1, ..., side, side)."""
        planes = self.row(planes[None] if planes.ndim == 2 else planes)
        flat = planes.flatten(1, -3) if planes.ndim > 3 else planes[:, None]
        centre = self.left + self.right - 1, self.top + self.bottom - 1
        matrix = planes.new_tensor(
            [[[self.right - self.left, 0, centre[0]], [0, self.bottom - self.top, centre[1]]]], dtype=torch.float32
        )
        grid = F.affine_grid(matrix, [1, 1, side, side], align_corners=False)
        shown = F.grid_sample(flat.float(), grid, padding_mode="border", align_corners=False).to(planes.dtype)
        return shown.reshape(*planes.shape[:-2], side, side)

    def scope(self, scope: Scope, side: int) -> Scope:
        """When and where an effect acts, its mask cut to the window."""
        return scope if scope.mask is None else replace(scope, mask=self.cut(scope.mask, side))


def prompt_in(
    window: CropWindow, conditioning: HostConditioning, latent: Tensor, side: int, nets: dict[Any, Any] | None = None
) -> HostConditioning:
    """The conditioning as it holds in the window, for an image of `side` pixels whose latent is given.

    Masks, ControlNets' hints and the latents that inpainting and control models read beside their own are cut to the
    window; of prompts with a mask or an area those that reach it are kept, if any do; the first reference latent, the
    image that an edit model works on, becomes the window's own. Boxes of GLIGEN are left out: like areas in pixels
    they count from the corner of an image whose size nobody knows.

    nets: ControlNet -> its copy for this window. Prompts that share it share the copy, so that the host can sample
    them as one batch.
    """
    nets = {} if nets is None else nets
    here = [pair for pair in conditioning if _reaches(pair[1], window)] or conditioning
    return [[window.row(text), _cut_values(values, window, latent, side, nets)] for text, values, *_ in here]


def model_in(window: CropWindow, model: Any, side: int) -> Any:
    """The MODEL as it acts in the window: what identities wear as masks is cut to it, and of those that have a row for
    each image of a batch this one's counts. The given MODEL is left as it is."""
    acting = with_scopes(model, lambda scope: window.scope(scope, side))
    if window.images > 1:  # as AnimateDiff says it, which other packs' adapters understand as well
        options = acting.model_options.setdefault("transformer_options", {})
        options["ad_params"] = {"sub_idxs": [window.image], "full_length": window.images}
    return acting


def _reaches(values: dict[str, Any], window: CropWindow) -> bool:
    mask, area = values.get("mask"), values.get("area")
    if isinstance(mask, Tensor) and not bool(window.cut(mask, _LOOK).any()):
        return False
    if not area or area[0] != "percentage":
        return True  # of areas in pixels nobody knows how large the whole image was
    dims = len(area) // 2  # of films three: time comes first
    (high, wide), (top, left) = area[1 : 1 + dims][-2:], area[1 + dims :][-2:]
    return window.holds_the_middle_of(left, top, left + wide, top + high)


def _cut_values(
    values: dict[str, Any], window: CropWindow, latent: Tensor, side: int, nets: dict[Any, Any]
) -> dict[str, Any]:
    left_out = {"gligen", *(("area", "strength") if "area" in values else ())}
    values = {key: value for key, value in values.items() if key not in left_out}
    if isinstance(values.get("mask"), Tensor):
        values["mask"] = window.cut(values["mask"], side)
        if not bool(values["mask"].any()):  # no prompt reaches the window: better this one than none
            values = {key: value for key, value in values.items() if key not in _OF_MASK}
    for key, length in (("concat_latent_image", latent.shape[-1]), ("concat_mask", side)):
        if isinstance(values.get(key), Tensor):
            values[key] = window.cut(values[key], length)
    if isinstance(values.get("pooled_output"), Tensor):
        values["pooled_output"] = window.row(values["pooled_output"])
    if values.get("control") is not None:
        values["control"] = _cut_hints(values["control"], window, side, nets)
    if values.get("reference_latents"):
        values["reference_latents"] = [latent, *values["reference_latents"][1:]]
    return values


def _cut_hints(control: Any, window: CropWindow, side: int, nets: dict[Any, Any]) -> Any:
    """A copy of a chain of ControlNets whose hints show the window."""
    from .control import IdentityControl

    if control in nets:
        return nets[control]
    copied = nets[control] = control.copy()
    if isinstance(copied, IdentityControl):
        copied.net, copied.scope = _cut_hints(copied.net, window, side, nets), window.scope(copied.scope, side)
    if isinstance(getattr(copied, "cond_hint_original", None), Tensor):
        copied.cond_hint_original = window.cut(copied.cond_hint_original, side)
    if beside := getattr(copied, "extra_concat_orig", None):  # masks of nets for inpainting
        copied.extra_concat_orig = [window.cut(planes, side) for planes in beside]
    before = getattr(control, "previous_controlnet", None)
    if before is not None:
        copied.set_previous_controlnet(_cut_hints(before, window, side, nets))
    return copied


def _is_prompt(value: Any) -> bool:
    """Whether this is a CONDITIONING with at least one entry."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(len(pair) > 1 and isinstance(pair[0], Tensor) and isinstance(pair[1], dict) for pair in value)
    )


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
        able = hasattr(self.vae, "encode") and hasattr(self.vae, "decode")
        if not able or hasattr(self.vae, "tokenize"):  # a CLIP encodes and decodes as well
            raise LikenessError(f"The input vae holds a {type(self.vae).__name__}: connect the checkpoint's VAE.")
        if not hasattr(self.model, "get_model_object"):
            raise LikenessError(f"The input model holds a {type(self.model).__name__}: connect a MODEL.")
        for name, prompt in (("positive", self.positive), ("negative", self.negative)):
            if not _is_prompt(prompt):
                raise LikenessError(
                    f"The input {name} is a {type(prompt).__name__}, not a prompt: connect a CONDITIONING, for "
                    "example of CLIP Text Encode."
                )
        wanted = self.model.get_model_object("latent_format").latent_channels
        given = getattr(self.vae, "latent_channels", wanted)
        if wanted != given:
            raise LikenessError(
                f"VAE and MODEL do not belong together: latents have {given} channels and the model reads {wanted}. "
                "Connect the VAE of the model's own checkpoint."
            )

        text, read = self.positive[0][0].shape[-1], {site.context_dim for site in sites_of(self.model)}
        if read and text not in read:
            raise LikenessError(
                f"Prompt and MODEL do not belong together: the prompt has width {text} and the model reads "
                f"{max(read)}. Encode it with the CLIP of the model's own checkpoint."
            )

    def again(self, pixels: Tensor, window: CropWindow, seed: int, mask: Tensor | None = None) -> Tensor:
        """The window (1, S, S, 3) sampled anew from its own latent; where the mask (S, S) is 0 it stays as it is."""
        import comfy.sample
        import comfy.utils
        import latent_preview

        side = pixels.shape[1]
        latent, nets = self.vae.encode(pixels), {}
        made = comfy.sample.sample(
            model_in(window, self.model, side),
            comfy.sample.prepare_noise(latent, seed),
            self.steps,
            self.cfg,
            self.sampler,
            self.scheduler,
            prompt_in(window, self.positive, latent, side, nets),
            prompt_in(window, self.negative, latent, side, nets),
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
