"""PuLID: EVA02-CLIP, the encoders, the face image, one attention layer in every mode, whole UNets, and FLUX."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from conformance import harness
from helpers import flux
from torch import Tensor

from likeness.adapters import eva_clip
from likeness.adapters.effects import AttentionTerm, BlockTerm, Scope
from likeness.adapters.pulid import CrossAttentions, Mode, Projection, Projections, PuLIDOptions, encode, with_zeros
from likeness.adapters.pulid.encoders import build_encoder
from likeness.adapters.pulid.face import face_features, pixels_of
from likeness.adapters.types import IdentityTokens
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import apply_effects
from likeness.injection.diffusers.place import FlowLevels, SamplingRun
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.weights.families import DitLayout


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


# FLUX -----------------------------------------------------------------------------------------------------------------


@harness.runs("pulid", r"flux PerceiverAttentionCA")
def cross_attention(case: Any) -> dict[str, Tensor]:
    modules = CrossAttentions({f"pulid_ca.0.{key}": value for key, value in case.weights.items()}, case.variant,
                              case.config["dim_head"])  # fmt: skip
    prepared = modules.prepare(0, case.inputs["id_tokens"])
    return {"out": modules.residual(0, case.inputs["img_tokens"], prepared)}


def flux_term(case: Any, layout: Any, strength: float, start_step: int = 0) -> BlockTerm:
    """The case's modules behind the blocks of a FLUX, and its person."""
    settings, given = case.config["ca"], case.inputs
    modules = CrossAttentions(case.weights, case.variant, settings["dim_head"])
    tokens = given["id_tokens"]
    numbers = layout.every(settings["double_interval"], settings["single_interval"])
    scope = PuLIDOptions(start_step=start_step).starting(Scope())
    return BlockTerm(modules, numbers, IdentityTokens(tokens, given.get("uncond_id_tokens", tokens)), strength, scope)


def flux_layout(case: Any) -> DitLayout:
    config = case.config["flux"]
    return DitLayout(config["depth"], config["depth_single_blocks"], config["hidden_size"])


def velocity(network: Any, case: Any, img: Tensor, time: Tensor, guidance: Tensor, text: str = "") -> Tensor:
    """What the network predicts for the case's text, or its negative one (text "neg_")."""
    given = case.inputs
    with torch.no_grad():
        return network(
            img, given[f"{text}txt"], given[f"{text}y"], time, img_ids=given["img_ids"][0],
            txt_ids=given["txt_ids"][0], guidance=guidance, return_dict=False,
        )[0]  # fmt: skip


@harness.runs("pulid", r"flux transformer")
def flux_transformer(case: Any) -> dict[str, Tensor]:
    network, given = flux.network(case.config["flux"], case.weights_below("flux.")), case.inputs
    outputs = {}
    for name, strength in (("out_no_id", 0.0), ("out_id", 1.0), ("out_weighted", case.config["id_weight"])):
        term = flux_term(case, flux_layout(case), strength)
        with apply_effects(network, [term], (Role.COND,), grid=tuple(case.config["grid"])):
            outputs[name] = velocity(network, case, given["img"], given["timesteps"], given.get("guidance"))
    return outputs


def sampled(case: Any, start_step: int, guided: bool) -> tuple[BlockTerm, SamplingRun, float, int]:
    """What is injected into a run, the run, the strength of true CFG, and the first step that has it."""
    config, sigmas = case.config, case.inputs["schedule"]
    run = SamplingRun.through(sigmas, FlowLevels(1.0))
    term = flux_term(case, flux_layout(case), config["id_weight"], start_step)
    return term, run, config["true_cfg"] if guided else 1.0, config["timestep_to_start_cfg"]


RUNS = {  # output -> whether the run starts late, whether it has true CFG
    "latents_true_cfg": (True, True),
    "latents_fake_cfg": (True, False),
    "latents_start0": (False, False),
}


@harness.runs("pulid", r"flux sampling")
def flux_sampling(case: Any) -> dict[str, Tensor]:
    network, given, config = flux.network(case.config["flux"], case.weights_below("flux.")), case.inputs, case.config
    outputs = {}
    for name in case.expected:
        late, guided = RUNS[name]
        term, run, scale, first_guided = sampled(case, config["start_step"] if late else 0, guided)
        img, guidance = given["img"], torch.full((len(given["img"]),), float(config["guidance"]))
        with apply_effects(network, [term], (Role.COND,), run=run, grid=tuple(config["grid"])) as applied:
            for step, (now, then) in enumerate(itertools.pairwise(given["schedule"])):
                applied.at_step(step)
                time = now.expand(len(img))
                applied.roles = (Role.COND,)
                found = velocity(network, case, img, time, guidance)
                if abs(scale - 1) > 0.01 and step >= first_guided:
                    applied.roles = (Role.UNCOND,)
                    negative = velocity(network, case, img, time, guidance, "neg_")
                    found = negative + scale * (found - negative)
                img = img + (then - now) * found
        outputs[name] = img
    return outputs
