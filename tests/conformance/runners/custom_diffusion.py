"""Custom Diffusion: file layouts, whole UNets, the gradient's stop, the merge, compression, losses, augmentation."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from conformance import harness
from torch import Tensor, nn

from likeness.training.base.attention_weights import free_attention, no_gradient_at_start
from likeness.training.data.zoom import FAR, NEAR, Draw, Zoom, even, zoomed
from likeness.training.objectives.custom_diffusion import target_loss
from likeness.weights.concept_compression import RankRule, compress, rank_choice
from likeness.weights.concept_merging import Constraints, Merger
from likeness.weights.concepts import Concept, changes_of, read_concept
from likeness.weights.lora import merged

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


# One attention --------------------------------------------------------------------------------------------------------


class OneAttention(nn.Module):
    """A network that is one cross-attention, where the path of a UNet's would be."""

    def __init__(self, case: Any) -> None:
        from diffusers.models.attention_processor import Attention

        super().__init__()
        config = case.config
        sizes = {"heads": config["heads"], "dim_head": config["dim_head"]}
        layer = Attention(config["hidden_size"], config["cross_attention_dim"], **sizes)
        layer.load_state_dict(case.weights_below("attn."))
        self.add_module("mid_block", nn.Module())
        parent: nn.Module = self.get_submodule("mid_block")
        for name in LAYER.split(".")[1:-1]:
            parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module("attn2", layer)

    def forward(self, states: Tensor, text: Tensor) -> Tensor:
        return self.get_submodule(LAYER)(states, text)


@harness.runs("custom_diffusion", r"attention processor.*")
def attention_processor(case: Any) -> dict[str, Tensor]:
    network = OneAttention(case)
    content = {f"{LAYER}.{key}": value for key, value in case.weights.items() if key.startswith("processor.")}
    concept = read_concept(content, "golden")
    with torch.no_grad(), merged(network, changes_of(concept, network.state_dict())):
        return {"hidden_states": network(case.inputs["hidden_states"], case.inputs["encoder_hidden_states"])}


@harness.runs("custom_diffusion", r"training gradients.*")
def training_gradients(case: Any) -> dict[str, Any]:
    network, given = OneAttention(case).requires_grad_(False), case.inputs
    trained = free_attention(network, queries=False)
    assert set(trained) == {f"{LAYER}.to_k.weight", f"{LAYER}.to_v.weight"}
    queries = network.get_parameter(f"{LAYER}.to_q.weight").requires_grad_()
    for parameter in trained.values():
        parameter.requires_grad_()
    text = given["encoder_hidden_states"].requires_grad_()
    with no_gradient_at_start(network):
        out = network(given["hidden_states"], text)
    (out * given["grad_output"]).sum().backward()
    return {
        "hidden_states": out,
        "grad_to_k": trained[f"{LAYER}.to_k.weight"].grad,
        "grad_to_v": trained[f"{LAYER}.to_v.weight"].grad,
        "grad_to_q": queries.grad,
        "grad_encoder_hidden_states": text.grad,
    }


# Files ----------------------------------------------------------------------------------------------------------------


@harness.runs("custom_diffusion", r"CompVis delta to diffusers delta.*")
def compvis_names(case: Any) -> dict[str, Tensor]:
    concept = read_concept(case.weights, "golden", token_width=case.config["token_width"])
    rows = {f"modifier_token.{word}": next(iter(t.vectors.values()))[0] for word, t in concept.tokens.items()}
    return {**{f"unet.{name}": value for name, value in concept.weights.items()}, **rows}


def concept_of(case: Any) -> Concept:
    return read_concept(case.weights_below("delta."), "golden")


def unet_config(case: Any) -> dict[str, Any]:
    """What of a case's configuration is its UNet's."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: value for name, value in case.config.items() if name in known}


@harness.runs("custom_diffusion", r"end to end.*")
def whole_unet(case: Any) -> dict[str, Tensor]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**unet_config(case))
    unet.load_state_dict(case.weights_below("unet."))
    given = case.inputs
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given} or None
    with torch.no_grad(), merged(unet.eval(), changes_of(concept_of(case), unet.state_dict())):
        eps = unet(given["sample"], given["timestep"], given["encoder_hidden_states"], added_cond_kwargs=added).sample
    return {"noise_pred": eps}


# Merging and compressing ----------------------------------------------------------------------------------------------


@harness.runs("custom_diffusion", r"closed-form merge.*")
def closed_form(case: Any) -> dict[str, Tensor]:
    count = len([key for key in case.inputs if re.fullmatch(r"C\d+", key)])
    rows = [case.inputs[f"C{n}"] for n in range(1, count + 1)]
    weights = [case.weights[f"W{n}"] for n in range(1, count + 1)]
    constraints = Constraints.of(rows)
    w, residual = Merger.of(case.inputs["R"], constraints).merged(case.weights["W0"], weights)
    assert residual < 1e-3
    return {"W": w, "constraints": constraints.features, "targets": constraints.targets(weights)}


@harness.runs("custom_diffusion", r"SVD compression.*")
def svd_compression(case: Any) -> dict[str, Tensor]:
    rank_of, outputs, ranks = rank_choice(RankRule.OFFICIAL, case.config["compression_ratio"], 1), {}, []
    for name in case.config["names"]:
        base = case.weights[f"base.{name}"]
        pair = compress(case.weights[f"delta.{name}"] - base, rank_of)
        ranks.append(pair.rank)
        outputs[f"{name}.W"] = base + pair.delta()
    return {**outputs, "rank_index": torch.tensor(ranks)}


# Training -------------------------------------------------------------------------------------------------------------


@harness.runs("custom_diffusion", r"masked (target )?loss.*")
def losses(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    prediction, target, mask = given["model_pred"], given["target"], given["mask"]
    if not config["with_prior_preservation"]:
        return {"loss": target_loss(prediction, target, mask).mean().reshape(1)}
    count = len(target) // 2
    instance = target_loss(prediction[:count], target[:count], mask[:count]).mean()
    prior = (prediction[count:] - target[count:]).square().mean()
    return {
        "loss": (instance + config["prior_loss_weight"] * prior).reshape(1),
        "prior_loss": prior.reshape(1),
    }


@harness.runs("custom_diffusion", r"augmentation and loss mask.*")
def augmentation(case: Any) -> dict[str, Tensor]:
    zoom = Zoom.ADOBE if "adobe" in case.variant else Zoom.HUGGINGFACE
    size, outputs = case.config["size"], {}
    cell = size // case.config.get("mask_size", size // 8)
    pixels = case.inputs["image"].permute(2, 0, 1) / 127.5 - 1
    for number, drawn in enumerate(case.config["draws"]):
        found = zoomed(pixels, draw_of(drawn, size, zoom), zoom, cell=cell)
        outputs[f"image_{number}"], outputs[f"mask_{number}"] = found.pixels, found.mask[0]
        if "captions" in case.config:
            said = case.config["captions"][number]
            assert said.startswith(found.prefix) and (bool(found.prefix) == said.startswith((*FAR, *NEAR)))
    return outputs


def draw_of(drawn: dict[str, Any], size: int, zoom: Zoom) -> Draw:
    """The adobe code draws the middle of the image or of the crop, huggingface's its corner."""
    if zoom is Zoom.HUGGINGFACE:
        return Draw(drawn["scale"], drawn["top"], drawn["left"])
    scale = even(drawn["scale"])
    half = min(scale, size) // 2
    top, left = ((drawn[axis] or half) - half for axis in ("cx", "cy"))
    return Draw(scale, top, left, drawn["choice"])
