"""PuLID: EVA02-CLIP, the encoders, the face image, one attention layer in every mode, and whole UNets."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from torch import Tensor

from likeness.adapters import eva_clip
from likeness.adapters.effects import AttentionTerm
from likeness.adapters.pulid import Mode, Projection, Projections, encode, with_zeros
from likeness.adapters.pulid.encoders import build_encoder
from likeness.adapters.pulid.face import face_features, pixels_of
from likeness.adapters.types import IdentityTokens
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import uniform
from likeness.injection.sites import sites_of_diffusers_unet


def mode_of(settings: dict[str, Any]) -> Mode:
    """The mode that a case names in the official words."""
    return Mode(settings["num_zero"], Projection(settings["projection"]))


# The networks ---------------------------------------------------------------------------------------------------------


@harness.runs("pulid", r"EVA02-CLIP vision tower")
def eva_tower(case: Any) -> dict[str, Tensor]:
    tower = eva_clip.build_eva(case.weights, head_width=case.config["embed_dim"] // case.config["num_heads"])
    features = tower.encode_pixels(case.inputs["pixels"])
    return {"pooled": features.pooled, **{f"hidden_{i}": states for i, states in enumerate(features.hidden)}}


@harness.runs("pulid", r".*IDEncoder|IDFormer.*")
def encoder(case: Any) -> dict[str, Tensor]:
    network = build_encoder(case.weights, case.config.get("dim_head", 64))
    given = case.inputs
    hidden = [given[f"hidden_{i}"] for i in range(sum(name.startswith("hidden_") for name in given))]
    photos = case.config.get("num_images", 1)
    nobody = [torch.zeros(1, states.shape[1] // photos, states.shape[2]) for states in hidden]
    return {
        "tokens": network(given["id_cond"], hidden),
        "uncond_tokens": network(torch.zeros(1, given["id_cond"].shape[-1]), nobody),
    }


def weights_of_encoder(case: Any) -> dict[str, Tensor]:
    """The official files of SDXL and of FLUX have other prefixes."""
    return case.weights_below("id_adapter.") or case.weights_below("pulid_encoder.")


@harness.runs("pulid", r"(v1|v11|flux) front end.*", tolerances={"face_features_u8": 1.1})
def front_end(case: Any) -> dict[str, Tensor]:
    """From the aligned photo to tokens. A grey level may be lost in the rounding of the image kept for looking at."""
    config, given = case.config, case.inputs
    eva = config["eva"]
    tower = eva_clip.build_eva(case.weights_below("eva."), head_width=eva["embed_dim"] // eva["num_heads"])
    network = build_encoder(weights_of_encoder(case), config["encoder_config"].get("dim_head", 64))
    face = face_features(given["aligned_rgb"], given["parsing"])
    pixels = pixels_of(face, tower.image_size, config["antialias"])
    tokens = encode(network, given["arcface"], tower.encode_pixels(pixels))
    return {
        "face_features_u8": (face * 255).round().permute(0, 2, 3, 1),
        "vit_input": pixels,
        "tokens": tokens.cond,
        "uncond_tokens": tokens.uncond,
    }


# One attention layer --------------------------------------------------------------------------------------------------


@harness.runs("pulid", r"sdxl attention injection")
def attention(case: Any) -> dict[str, Tensor]:
    given, config, weights = case.inputs, case.config, case.weights

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    q = linear("attn.to_q", given["hidden_states"])
    text = attend(q, linear("attn.to_k", given["text"]), linear("attn.to_v", given["text"]), config["heads"])
    outputs = {"no_id": linear("attn.to_out.0", text)}
    for name, settings in config["modes"].items():
        mode = mode_of(settings)
        tokens = with_zeros(given["id_tokens"], mode.zeros)
        keys, values = (split_heads(linear(f"id_to_{half}", tokens), config["heads"]) for half in "kv")
        term = SiteTerm(keys, config["id_scale"] * values, merge=mode.projection.merge)
        outputs[name] = linear("attn.to_out.0", add_identity(text, q, [term]))
    return outputs


# Whole UNets ----------------------------------------------------------------------------------------------------------


def diffusers_unet(case: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**case.config["unet"])
    unet.load_state_dict(case.weights_below("unet."))
    return unet.eval()


def projector_of(case: Any) -> Any:
    """The case's keys and values; its tokens are given, so that it needs no encoder."""
    return Projections(case.weights, case.variant)


def chunks_of(case: Any) -> list[tuple[slice, IdentityTokens]]:
    """Rows of the batch that one pair of token rows serves: the first is unconditioned, all others are conditioned."""
    tokens = case.inputs["id_tokens"]
    return [(slice(i, i + 1), IdentityTokens(tokens[i : i + 1], tokens[:1])) for i in range(1, len(tokens))]


def terms_of(case: Any, name: str, projector: Any, tokens: IdentityTokens, sites: Any) -> list[AttentionTerm]:
    """What is injected for the output eps_<name>; nothing for the model alone."""
    if name == "no_id":
        return []
    mode = mode_of(case.config["modes"][name])
    tokens = IdentityTokens(with_zeros(tokens.cond, mode.zeros), with_zeros(tokens.uncond, mode.zeros))
    return [AttentionTerm(projector, tokens, uniform(case.config["id_scale"], sites), merge=mode.projection.merge)]


@harness.runs("pulid", r"sdxl end to end|sd15-like end to end")
def unet(case: Any) -> dict[str, Tensor]:
    network, projector, given = diffusers_unet(case), projector_of(case), case.inputs
    sites = sites_of_diffusers_unet(network)
    assert [f"{site.diffusers_path}.attn2.processor" for site in sites] == case.config["attn2_order"]
    outputs = {}
    for name in ("no_id", *case.config["modes"]):
        rows: dict[int, Tensor] = {}
        for rest, tokens in chunks_of(case):
            batch = [0, rest.start]
            added = {k: given[k][batch] for k in ("text_embeds", "time_ids") if k in given} or None
            with apply_effects(network, terms_of(case, name, projector, tokens, sites)), torch.no_grad():
                eps = network(
                    given["sample"][batch], given["timestep"][batch], given["text"][batch], added_cond_kwargs=added
                ).sample
            rows |= dict(zip(batch, eps, strict=True))
        outputs[f"eps_{name}"] = torch.stack([rows[i] for i in sorted(rows)])
    return outputs
