"""IP-Adapter's options: weight types, scaling of keys and values, several images."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from conformance import harness

from likeness.adapters import clip_vision, image_prep
from likeness.adapters.ip_adapter import schedules
from likeness.adapters.ip_adapter import weight_types as sites
from likeness.adapters.ip_adapter.adapter import HEAD_WIDTH
from likeness.adapters.ip_adapter.embeds import CombineMode, EmbedsScaling, join_embeds
from likeness.adapters.networks import build_projection
from likeness.checks import as_mask
from likeness.injection import masks
from likeness.injection.attention import attend
from likeness.weights.families import TransformerLayout


@harness.runs("ip_adapter", r"peer parity: weight types")
def weight_types(case: Any) -> dict[str, torch.Tensor]:
    by_transformer = sorted(case.config["first_site"].items(), key=lambda item: int(item[0]))
    layout = TransformerLayout.of_blocks((name, number) for _, (_, (name, number, _)) in by_transformer)
    cond, uncond, swap = [], [], []
    for name, options in case.config["rows"]:
        row = sites.site_weights(
            sites.WeightType(name),
            layout,
            case.config["weight"],
            composition_weight=case.config["weight_composition"],
            **options,
        )
        cond.append([0.0 if site.swapped else site.strength for site in row])
        uncond.append([site.strength for site in row])
        swap.append([float(site.swapped) for site in row])
    return {"mult_cond": torch.tensor(cond), "mult_uncond": torch.tensor(uncond), "swap": torch.tensor(swap)}


@harness.runs("ip_adapter", r"peer parity: embeds scaling")
def embeds_scaling(case: Any) -> dict[str, torch.Tensor]:
    project = {key.rsplit(".", 2)[1]: weight for key, weight in case.weights.items()}
    tokens = torch.cat([case.inputs["tokens_cond"], case.inputs["tokens_uncond"]])
    keys, values = tokens @ project["to_k_ip"].T, tokens @ project["to_v_ip"].T

    def image_term(mode: EmbedsScaling, weight: float) -> torch.Tensor:
        scaled = mode.function(keys, values, weight, case.config["channels"])
        return attend(case.inputs["q"], *scaled, case.config["heads"])

    return {
        name.replace("+", "_").replace("/", "").replace(" ", "_"): torch.stack(
            [image_term(EmbedsScaling(name), weight) for weight in case.config["weights"]]
        )
        for name in case.config["modes"]
    }


@harness.runs("ip_adapter", r"peer parity: combining several images")
def combine_embeds(case: Any) -> dict[str, torch.Tensor]:
    image_proj = build_projection(case.weights_below("image_proj."), HEAD_WIDTH)
    outputs = {}
    for mode in CombineMode:
        name = mode.value.replace(" ", "_")
        outputs[f"embeds_{name}"] = join_embeds(case.inputs["embeds"], mode)
        if mode not in (CombineMode.MAX, CombineMode.MIN):  # of the Combine Embeds node alone
            outputs[f"tokens_{name}"] = image_proj(join_embeds(case.inputs["image_embeds"], mode))
    return outputs


# The pack knows the grid of a site exactly; what follows is how the official code of these cases guesses it.


def guess_grid(latent_height: int, latent_width: int, tokens: int) -> tuple[int, int]:
    """(h, w) of a site with so many tokens, from the latent's proportions, as ComfyUI_IPAdapter_plus guesses it.

    Right when both sides of the latent are multiples of 8; h · w may differ from `tokens` otherwise.
    """
    return _near_grid(latent_height / math.sqrt(latent_height * latent_width / tokens), tokens)


def guess_grid_from_mask(mask_height: int, mask_width: int, tokens: int) -> tuple[int, int]:
    """(h, w) of a site with so many tokens, from the mask's own proportions, as diffusers guesses it."""
    return _near_grid(math.sqrt(tokens / (mask_width / mask_height)), tokens)


def _near_grid(height: float, tokens: int) -> tuple[int, int]:
    rows = max(int(height), 1)
    rows += tokens % rows != 0
    return rows, max(tokens // rows, 1)


def tokens_centred(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """(m, h, w) -> (m, tokens): zeros on both sides, or both ends cut (ComfyUI_IPAdapter_plus)."""
    flat = mask.flatten(1)
    missing = tokens - flat.shape[1]
    if missing >= 0:
        return F.pad(flat, (missing // 2, missing - missing // 2))
    start = -missing // 2
    return flat[:, start : start + tokens]


def tokens_from_start(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """(m, h, w) -> (m, tokens): zeros behind, or the end cut (diffusers)."""
    flat = mask.flatten(1)
    return F.pad(flat, (0, tokens - flat.shape[1])) if flat.shape[1] < tokens else flat[:, :tokens]


def fit_batch(mask: torch.Tensor, count: int) -> torch.Tensor:
    """One mask per image, (count, H, W): missing ones repeat the last, spare ones are left out (diffusers)."""
    return torch.cat([mask, mask[-1:].expand(max(count - len(mask), 0), -1, -1)])[:count]


@harness.runs("ip_adapter", r"peer parity: attn_mask resize")
def mask_resize(case: Any) -> dict[str, torch.Tensor]:
    mask = as_mask(case.inputs["mask"], "The mask")
    outputs = {}
    for row in case.config["cases"]:
        site = dict(zip(case.config["columns"], row, strict=True))
        grid = guess_grid(site["latent_h"], site["latent_w"], site["tokens"])
        resized = masks.resize_mask(mask, grid, masks.MaskResize.BILINEAR)
        name = f"mask_{site['latent_h']}x{site['latent_w']}_l{site['level']}"
        outputs[name] = tokens_centred(resized, site["tokens"]).squeeze(0)
    return outputs


@harness.runs("ip_adapter", r"diffusers mask resize")
def mask_downsample(case: Any) -> dict[str, torch.Tensor]:
    outputs = {}
    for i, (tokens, source) in enumerate(zip(case.config["num_queries"], case.config["source_masks"], strict=True)):
        mask = case.inputs[source]
        grid = guess_grid_from_mask(mask.shape[1], mask.shape[2], tokens)
        resized = fit_batch(masks.resize_mask(mask, grid, masks.MaskResize.BICUBIC), case.config["batch"])
        outputs[f"mask_{i}"] = tokens_from_start(resized, tokens)
    return outputs


@harness.runs("ip_adapter", r"peer parity: frame weight schedules")
def weight_schedules(case: Any) -> dict[str, torch.Tensor]:
    outputs = {}
    for i, options in enumerate(case.config["cases"]):
        weights = schedules.parse_weights(options["weights"])
        span = schedules.FrameRange(
            frames=options.get("frames", len(weights)),
            start=options.get("start_frame", 0),
            end=options.get("end_frame", 9999),
            add_starting=options.get("add_starting_frames", 0),
            add_ending=options.get("add_ending_frames", 0),
        )
        method = schedules.FrameSharing(options.get("method", "full batch"))
        frames = schedules.schedule(weights, schedules.Timing(options["timing"]), span, method, options.get("n", 0))
        outputs[f"w_{i}"] = torch.tensor(frames.weights)
        outputs[f"w_invert_{i}"] = torch.tensor(frames.inverted)
        outputs[f"image_1_{i}"] = torch.tensor(frames.image_1)
        outputs[f"image_2_{i}"] = torch.tensor(frames.image_2)
    return {name: value for name, value in outputs.items() if name in case.expected}


@harness.runs("ip_adapter", r"peer parity: sharpening and tile merging")
def image_helpers(case: Any) -> dict[str, torch.Tensor]:
    tiles = case.config["tiles"]
    image = case.inputs["image"].movedim(1, -1)
    return {
        "sharpened": torch.stack([image_prep.sharpen(image, a).movedim(-1, 1) for a in case.config["amounts"]]),
        "merged_hidden": image_prep.merge_tile_hidden(case.inputs["tile_hidden"], tiles),
        "merged_embeds": image_prep.merge_tile_embeds(case.inputs["tile_embeds"], tiles),
        "tiles": image_prep.split_tiles(case.inputs["batch"], tiles),
    }


@harness.runs("ip_adapter", r"CLIP preprocessing")
def clip_preprocessing(case: Any) -> dict[str, torch.Tensor]:
    size = case.config["size"]
    return {
        name.replace("image", "pixel_values"): image_prep.pixel_values(image / 255, size).squeeze(0)
        for name, image in case.inputs.items()
    }


@harness.runs("ip_adapter", r"image encoder outputs used by the adapters")
def clip_vision_outputs(case: Any) -> dict[str, torch.Tensor]:
    encoder = clip_vision.TransformersClipEncoder.from_weights(case.weights, case.config)
    features = encoder.encode_pixels(case.inputs["pixel_values"])
    zero, black = (clip_vision.encode_unconditional(encoder, kind) for kind in clip_vision.Unconditional)
    return {
        "image_embeds": features.image_embeds,
        "penultimate": features.penultimate,
        "penultimate_zero_pixels": zero.penultimate,
        "penultimate_black_image": black.penultimate,
    }
