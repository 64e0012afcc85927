"""IP-Adapter: projections, attention layers, and whole UNets through the diffusers binding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from conformance import harness
from torch import Tensor

from likeness.adapters import Evidence, IPAdapter, build
from likeness.adapters.effects import AttentionTerm, MaskResize, Scope
from likeness.adapters.ip_adapter.adapter import HEAD_WIDTH
from likeness.adapters.networks import FaceIdPlusProjection, build_projection
from likeness.adapters.types import IdentityTokens
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet
from likeness.weights.lora import LoraPair

# Projections ----------------------------------------------------------------------------------------------------------


@harness.runs("ip_adapter", r"(?!.*(layout|LoRA))(base|plus|full-face|faceid).*")
def projection(case: Any) -> dict[str, Tensor]:
    network = build_projection(case.weights_below("image_proj."), HEAD_WIDTH)
    given = case.inputs
    outputs = {}
    if isinstance(network, FaceIdPlusProjection):
        ids, features, empty = given["id_embeds"], given["clip_hidden"], given["clip_hidden_uncond"]
        for suffix, i, f in (("", ids, features), ("_uncond", torch.zeros_like(ids), empty)):
            outputs[f"tokens_v1{suffix}"] = network(i, f, shortcut=False)
            versions = [network(i, f, shortcut=True, structure=s) for s in case.config["s_scales"]]
            outputs[f"tokens_v2{suffix}"] = torch.stack(versions)
        return outputs
    for name, value in given.items():
        if name.endswith("_uncond"):
            continue
        suffix = "_multi" if name.endswith("_multi") else ""
        empty = given.get(f"{name}_uncond", torch.zeros_like(value))
        for half, x in (("", value), ("_uncond", empty)):
            # Every photo goes through the network alone; the tokens of a sample's photos stand side by side.
            tokens = network(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2) if suffix else network(x)
            outputs[f"tokens{suffix}{half}"] = tokens
    return outputs


# One attention layer --------------------------------------------------------------------------------------------------


class _Layer:
    """The projections of one attention layer, with a LoRA merged into them."""

    def __init__(self, case: Any, slot: int, lora_scale: float = 0.0) -> None:
        weights = case.weights_below("attn.")
        lora = case.weights_below(f"ip_adapter.{slot}.")
        for name in ("to_q", "to_k", "to_v", "to_out"):
            down, up = (lora.get(f"{name}_lora.{half}.weight") for half in ("down", "up"))
            if down is not None and up is not None:
                key = f"{name}.0.weight" if name == "to_out" else f"{name}.weight"
                weights[key] = weights[key] + LoraPair(down, up).delta(lora_scale)
        self.weights, self.heads = weights, case.config["heads"]
        self.key_ip, self.value_ip = lora.get("to_k_ip.weight"), lora.get("to_v_ip.weight")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def __call__(self, hidden: Tensor, text: Tensor, tokens: Tensor | None = None, scale: float = 0.0) -> Tensor:
        q = self.linear("to_q", hidden)
        out = attend(q, self.linear("to_k", text), self.linear("to_v", text), self.heads)
        if tokens is not None:
            keys, values = tokens @ self.key_ip.T, scale * (tokens @ self.value_ip.T)  # type: ignore[union-attr]
            out = add_identity(out, q, [SiteTerm(split_heads(keys, self.heads), split_heads(values, self.heads))])
        return self.linear("to_out.0", out)


@harness.runs("ip_adapter", r"decoupled cross-attention")
def decoupled(case: Any) -> dict[str, Tensor]:
    layer, given = _Layer(case, slot=1), case.inputs
    rows = [layer(given["hidden_states"], given["text"], given["ip_tokens"], s) for s in case.config["scales"]]
    return {"hidden_states": torch.stack(rows)}


@harness.runs("ip_adapter", r"faceid decoupled cross-attention with LoRA")
def decoupled_lora(case: Any) -> dict[str, Tensor]:
    given = case.inputs
    rows = [
        _Layer(case, slot=1, lora_scale=lora_scale)(given["hidden_states"], given["text"], given["ip_tokens"], scale)
        for scale, lora_scale in case.config["grid_scale_lora_scale"]
    ]
    return {"hidden_states": torch.stack(rows)}


@harness.runs("ip_adapter", r"faceid self-attention LoRA")
def self_lora(case: Any) -> dict[str, Tensor]:
    x = case.inputs["hidden_states"]
    return {"hidden_states": torch.stack([_Layer(case, 0, s)(x, x) for s in case.config["lora_scales"]])}


# Whole UNets ----------------------------------------------------------------------------------------------------------


def diffusers_unet(case: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**case.config["unet"])
    unet.load_state_dict(case.weights_below("unet."))
    return unet.eval()


def evidence_of(case: Any) -> Evidence:
    """The case's inputs; a sample's several photos are rows of their own."""
    given = case.inputs
    ids = given.get("id_embeds")
    return Evidence(
        id_embeds=ids.flatten(0, -2) if ids is not None else None,
        features=given.get("clip_hidden", given.get("image_embeds")),
        uncond_features=given.get("clip_hidden_uncond"),
    )


def joined(tokens: IdentityTokens) -> IdentityTokens:
    """Tokens of all photos side by side: one softmax."""
    return IdentityTokens(tokens.cond.flatten(0, 1).unsqueeze(0), tokens.uncond.flatten(0, 1).unsqueeze(0))


def adapter_of(case: Any) -> IPAdapter:
    config = case.config
    weights = {k: v for k, v in case.weights.items() if not k.startswith("unet.")}
    version = None if config.get("shortcut") is None else (2 if config["shortcut"] else 1)
    return build(weights, f"{config.get('image_proj', '')} {case.variant}", plus_version=version)


def added_conditions(case: Any, half: str) -> dict[str, Tensor] | None:
    if "time_ids" not in case.inputs:
        return None
    return {"text_embeds": case.inputs[f"pooled_{half}"], "time_ids": case.inputs["time_ids"]}


@harness.runs("ip_adapter", r".*layout.*")
def unet(case: Any) -> dict[str, Tensor]:
    network, adapter, given = diffusers_unet(case), adapter_of(case), case.inputs
    tokens = joined(adapter.encode(evidence_of(case), structure=case.config.get("s_scale", 1.0)))
    sites = sites_of_diffusers_unet(network)
    assert [site.slot for site in sites] == [slot for slot, *_ in case.config["sites"]]
    outputs: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    scales = case.config["scales"]
    for scale, lora in zip(scales, case.config.get("lora_scales", [0.0] * len(scales)), strict=True):
        term, delta = (
            AttentionTerm(adapter, tokens, uniform(scale, sites)),
            adapter.lora(diffusers_layers(sites), lora),
        )
        with apply_effects(network, [term, delta] if delta else [term]) as applied, torch.no_grad():
            for role in Role:
                half = role.name.lower()
                applied.roles = (role,)
                eps = network(
                    given["sample"],
                    given["timestep"],
                    given[f"text_{half}"],
                    added_cond_kwargs=added_conditions(case, half),
                )
                outputs[half].append(eps.sample)
    return {
        "tokens_cond": tokens.cond,
        "tokens_uncond": tokens.uncond,
        "eps_cond": torch.stack(outputs["cond"]),
        "eps_uncond": torch.stack(outputs["uncond"]),
    }


# Two adapters ---------------------------------------------------------------------------------------------------------


def adapters_of(case: Any) -> list[tuple[IPAdapter, IdentityTokens]]:
    """Every adapter of a case with the tokens of its photos, (photos, n_tokens, dim), whatever each of them reads."""
    pairs = []
    for i, kind in enumerate(case.config["kinds"]):
        adapter = build(case.weights_below(f"adapter_{i}."), kind)
        pairs.append((adapter, adapter.encode(evidence_of_one(case, i, adapter))))
    return pairs


def evidence_of_one(case: Any, i: int, adapter: IPAdapter) -> Evidence:
    """What the i-th adapter is shown: `embeds_i` are embeddings of faces or of images, as its file has it.

    An adapter that reads both has its images' hidden states in an input of their own.
    """
    embeds = case.inputs[f"embeds_{i}"].flatten(0, -3 if adapter.needs_features and not adapter.needs_embedding else -2)
    ids = embeds if adapter.needs_embedding else None
    hidden = next((case.inputs[name] for name in (f"clip_hidden_{i}", f"clip_embeds_{i}") if name in case.inputs), None)
    features = embeds if ids is None else None if hidden is None else hidden.flatten(0, -3)
    return Evidence(ids, features, None if features is None else torch.zeros_like(features))


def with_scales(case: Any, sites: Any, scales: list[float]) -> list[AttentionTerm]:
    """All photos of an adapter share one softmax."""
    return [
        AttentionTerm(adapter, joined(tokens), uniform(scale, sites))
        for (adapter, tokens), scale in zip(adapters_of(case), scales, strict=True)
    ]


def masked(case: Any, sites: Any, adapter_index: int, scales: list[float]) -> list[AttentionTerm]:
    """Every photo of an adapter has its own softmax, mask and scale."""
    adapter, tokens = adapters_of(case)[adapter_index]
    masks = case.inputs[f"mask_{adapter_index}"][0]
    template = AttentionTerm(adapter, tokens, uniform(1.0, sites))
    return [
        replace(
            template,
            tokens=IdentityTokens(tokens.cond[p : p + 1], tokens.uncond[p : p + 1]),
            site_weights=uniform(scale, sites),
            scope=Scope(mask=masks[p : p + 1], mask_resize=MaskResize.BICUBIC),
        )
        for p, scale in enumerate(scales)
    ]


def two_adapters(case: Any, sites: Any) -> dict[str, list[AttentionTerm]]:
    """Output name -> what is injected for it, of the outputs that the case has."""
    return {name: terms for name, terms in _combinations(case, sites).items() if name in case.expected}


def _combinations(case: Any, sites: Any) -> dict[str, list[AttentionTerm]]:
    config = case.config
    scales, photos = config["scales"], config["photos"]
    numbers = range(len(scales))
    has_masks = [f"mask_{a}" in case.inputs for a in numbers]
    if not any(has_masks):
        return {
            "eps_both": with_scales(case, sites, scales),
            "eps_first_only": with_scales(case, sites, [scales[0], 0.0]),
            "eps_second_only": with_scales(case, sites, [0.0, scales[1]]),
        }
    whole = with_scales(case, sites, scales)
    every = [masked(case, sites, a, [scales[a]] * photos[a]) if has_masks[a] else [whole[a]] for a in numbers]
    found = {"eps": [term for terms in every for term in terms], "eps_only_second_masked": [whole[0], *every[1]]}
    if "per_photo_scales" in config:
        per_photo = [masked(case, sites, a, config["per_photo_scales"][a]) for a in numbers if has_masks[a]]
        unmasked = [whole[a] for a in numbers if not has_masks[a]]
        found["eps_per_photo_scales"] = [term for terms in per_photo for term in terms] + unmasked
    return found


@harness.runs("ip_adapter", r"two adapters.*")
def several_adapters(case: Any) -> dict[str, Tensor]:
    network, given = diffusers_unet(case), case.inputs
    tokens = {f"tokens_{i}": tokens.cond.unsqueeze(0) for i, (_, tokens) in enumerate(adapters_of(case))}
    outputs = {name: value for name, value in tokens.items() if name in case.expected}
    for name, injections in two_adapters(case, sites_of_diffusers_unet(network)).items():
        with apply_effects(network, injections, (Role.COND,)), torch.no_grad():
            outputs[name] = network(given["sample"], given["timestep"], given["text"]).sample
    return outputs
