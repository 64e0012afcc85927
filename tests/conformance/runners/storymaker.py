"""StoryMaker: resampler, attention layers, reference images, whole UNets through diffusers, and the mask loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conformance import harness
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from likeness.adapters.clip_vision import TransformersClipEncoder
from likeness.adapters.effects import AttentionTerm
from likeness.adapters.image_prep import Crop, normalise, to_square
from likeness.adapters.networks import Perceiver, PerceiverSizes
from likeness.adapters.storymaker import StoryMaker
from likeness.adapters.storymaker.body import cut_out_character
from likeness.adapters.storymaker.projection import HeadWidths, StoryMakerProjection, build_character_projection
from likeness.adapters.types import IdentityTokens
from likeness.faces import arcface_crop
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import uniform
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet
from likeness.training.objectives.storymaker import attention_loss, masked_error
from likeness.training.probe import columns_of
from likeness.weights.lora import LoraPair

# Networks -------------------------------------------------------------------------------------------------------------


def heads_of(config: dict[str, Any]) -> HeadWidths:
    return HeadWidths(config["perceiver"]["dim_head"], config["resample"]["dim_head"])


@harness.runs("storymaker", r"face perceiver")
def perceiver(case: Any) -> dict[str, Tensor]:
    network = Perceiver(PerceiverSizes.of(case.weights, case.config["dim_head"]))
    network.load_state_dict(case.weights)
    with torch.no_grad():
        return {"out": network.resample(case.inputs["latents"], case.inputs["x"])}


@harness.runs("storymaker", r"image_proj")
def projection(case: Any) -> dict[str, Tensor]:
    network = build_character_projection(case.weights, heads_of(case.config))
    return dict(zip(("tokens", "uncond_tokens"), both_halves(network, case.inputs), strict=True))


def both_halves(network: StoryMakerProjection, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Conditioned and unconditioned tokens of ready features, one row per person."""
    evidence = [given[name] for name in ("id_embeds", "face_clip", "body_clip")]
    with torch.no_grad():
        made = [
            network(network.faces(i, f), network.bodies(b)) for i, f, b in (evidence, map(torch.zeros_like, evidence))
        ]
    return made[0], made[1]


# One attention layer --------------------------------------------------------------------------------------------------


@harness.runs("storymaker", r"attention")
def attention(case: Any) -> dict[str, Tensor]:
    given, config, weights = case.inputs, case.config, case.weights_below("attn.")
    own, heads = case.weights_below("ip."), config["heads"]
    hidden = given["hidden_states"]
    text = given.get("text_context", hidden)

    def linear(name: str, x: Tensor) -> Tensor:
        short = name.removesuffix(".0")
        pair = LoraPair(own[f"{short}_lora.down.weight"], own[f"{short}_lora.up.weight"])
        weight = weights[f"{name}.weight"] + pair.delta(config["lora_scale"])
        return torch.nn.functional.linear(x, weight, weights.get(f"{name}.bias"))

    q = linear("to_q", hidden)
    out = attend(q, linear("to_k", text), linear("to_v", text), heads)
    if "ip_tokens" not in given:
        return {"hidden_states": linear("to_out.0", out)}
    tokens = given["ip_tokens"]
    keys, values = tokens @ own["to_k_ip.weight"].T, config["scale"] * (tokens @ own["to_v_ip.weight"].T)
    out = add_identity(out, q, [SiteTerm(split_heads(keys, heads), split_heads(values, heads))])
    every = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    return {"hidden_states": linear("to_out.0", out), "attn_probs": columns_of(q, keys, every, heads).mean(1)}


# References -----------------------------------------------------------------------------------------------------------


def body_picture(picture: Tensor, mask: Tensor) -> Tensor:
    """(1, h, w, 3) in 0..1: the character on white."""
    return torch.from_numpy(cut_out_character(picture.numpy(), mask[..., 0].numpy())).unsqueeze(0) / 255


def face_picture(picture: Tensor, keypoints: Tensor) -> Tensor:
    crop = arcface_crop(picture.numpy(), keypoints.numpy().astype(np.float64), 224)
    return torch.from_numpy(crop).unsqueeze(0) / 255


def as_bytes(picture: Tensor) -> Tensor:
    return (picture[0] * 255).round().to(torch.uint8)


@harness.runs("storymaker", r"reference crop", dict.fromkeys(("crop", "body_224", "face_224"), 1))
def reference(case: Any) -> dict[str, Tensor]:
    given = case.inputs
    body, face = body_picture(given["image"], given["mask"]), face_picture(given["image"], given["kps"])
    square = to_square(body, 224, Crop.SQUASH)
    return {
        "crop": as_bytes(body),
        "body_224": as_bytes(square),
        "body_pixels": normalise(square),
        "face_224": as_bytes(face),
        "face_pixels": normalise(face),
    }


@harness.runs("storymaker", r"reference to tokens")
def reference_tokens(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    encoder = TransformersClipEncoder.from_weights(case.weights_below("image_encoder."), config["clip"])
    network = build_character_projection(case.weights_below("image_proj_model."), heads_of(config["image_proj"]))

    def hidden(pictures: list[Tensor]) -> Tensor:
        pixels = [normalise(to_square(picture, encoder.size.image_size, Crop.SQUASH)) for picture in pictures]
        return encoder.encode_pixels(torch.cat(pixels)).penultimate

    people = range(config["persons"])
    clothes = [given[name].unsqueeze(0) / 255 for name in sorted(given) if name.startswith("cloth")]
    bodies = clothes or [body_picture(given[f"image_{i}"], given[f"mask_{i}"]) for i in people]
    evidence = {
        "id_embeds": torch.stack([given[f"id_{i}"] for i in people]),
        "face_clip": hidden([face_picture(given[f"image_{i}"], given[f"kps_{i}"]) for i in people]),
        "body_clip": hidden(bodies),
    }
    cond, uncond = both_halves(network, evidence)
    return {"tokens": torch.cat([uncond, cond])}


# Whole UNets ----------------------------------------------------------------------------------------------------------


def adapter_of(case: Any) -> StoryMaker:
    weights = {key: value for key, value in case.weights.items() if not key.startswith("unet.")}
    return StoryMaker(weights, "mask.bin", heads_of(case.config["image_proj"]))


def tokens_of(case: Any, adapter: StoryMaker) -> IdentityTokens:
    return IdentityTokens(*both_halves(adapter.image_proj_model, case.inputs))


@harness.runs("storymaker", r"unet")
def whole_unet(case: Any) -> dict[str, Tensor]:
    given, config, adapter = case.inputs, case.config, adapter_of(case)
    unet = UNet2DConditionModel(**config["unet"])
    unet.load_state_dict(case.weights_below("unet."))
    sites, tokens = sites_of_diffusers_unet(unet), tokens_of(case, adapter)
    layers = diffusers_layers(sites)
    assert [f"{layers[slot]}.processor" for slot in sorted(layers)] == config["attn_order"]
    delta = adapter.lora(layers, config["lora_scale"])
    term = AttentionTerm(adapter, tokens, uniform(config["scale"], sites))
    with apply_effects(unet.eval(), [term, delta]), torch.no_grad():
        eps = unet(
            given["latent"].expand(2, -1, -1, -1),
            given["timestep"],
            given["text_context"],
            added_cond_kwargs={"text_embeds": given["pooled"], "time_ids": given["time_ids"]},
        ).sample
    return {"eps": eps, "tokens": torch.cat([tokens.uncond, tokens.cond])}


# The mask loss --------------------------------------------------------------------------------------------------------


@harness.runs("storymaker", r"mask loss")
def mask_loss(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    masks = given["mask"].movedim(-1, 1)
    maps = [given[name] for name in sorted(given) if name.startswith("map_")]
    attention = attention_loss(maps, masks, config["tokens_per_person"], config["layer_divisor"])
    denoising = masked_error(given["noise_pred"], given["noise"], masks, config["mask_loss_weight"])
    return {
        "attention_loss": attention.squeeze(0),
        "denoise_loss": denoising.squeeze(0),
        "total": (denoising + config["ip_loss_weight"] * attention).squeeze(0),
    }
