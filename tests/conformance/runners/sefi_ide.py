"""SeFi-IDE: stages, tokens, attention with keys and values of their own, the attention loss; Celeb Basis."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from torch import Tensor, nn

from likeness.adapters.sefi_ide.celeb_basis import FaceCoefficients, basis_of_names, tokens_of
from likeness.adapters.sefi_ide.networks import TokenBlock, TokenGenerator, stage_of
from likeness.injection.key_values import separate_values
from likeness.training.objectives.subject_attention import Reduction, attention_difference, subject_attention


@harness.runs("sefi_ide", r"stage index")
def stage_index(case: Any) -> dict[str, Tensor]:
    return {f"stage_index_{n}": stage_of(case.inputs["timesteps"], n) for n in case.config["stages"]}


@harness.runs("sefi_ide", r"token generator.*")
def generator(case: Any) -> dict[str, Tensor]:
    config = case.config
    network = TokenGenerator if config["kv"] else TokenBlock
    block = network(config["dim"], config["stages"], config["heads"], config["dim_head"]).eval()
    block.load_state_dict(case.weights)
    return {"tokens": block(case.inputs["x0"])}


@harness.runs("sefi_ide", r"K/V split cross-attention")
def split_attention(case: Any) -> dict[str, Tensor]:
    from diffusers.models.attention_processor import Attention

    config, given = case.config, case.inputs
    width, heads = config["hidden_size"], config["heads"]
    dim_head = case.weights["to_q.weight"].shape[0] // heads
    attention = Attention(width, config["cross_attention_dim"], heads=heads, dim_head=dim_head)
    attention.load_state_dict(case.weights)
    states = torch.cat([given["context_k"], given["context_v"]], dim=-1)
    with separate_values(nn.ModuleDict({"attn2": attention})):
        return {"hidden_states": attention(given["hidden_states"], states)}


@harness.runs("sefi_ide", r"tiny UNet, per-stage K/V contexts.*")
def stages_of_unet(case: Any) -> dict[str, Tensor]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config, given = dict(case.config), case.inputs
    stages = config.pop("stages")
    unet = UNet2DConditionModel(**config).eval()
    unet.load_state_dict(case.weights_below("unet."))
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    contexts = torch.cat([given["context_k"], given["context_v"]], dim=-1)
    with separate_values(unet), torch.no_grad():
        outputs = [
            unet(given["sample"], t, contexts[stage_of(t, stages)].unsqueeze(0), added_cond_kwargs=added).sample
            for t in given["timesteps"]
        ]
    return {"noise_pred": torch.cat(outputs)}


@harness.runs("sefi_ide", r"subject-wise attention loss.*")
def attention_loss(case: Any) -> dict[str, Tensor]:
    given, layers = case.inputs, case.config["layers"]
    positions = given["token_mask"].nonzero().T.expand(case.config["batch"], -1)
    keys = [given[f"k_target_{i}"].requires_grad_() for i in range(len(layers))]

    def loss(reduction: Reduction) -> Tensor:
        return subject_attention(
            [
                attention_difference(
                    given[f"q_{i}"], keys[i], given[f"k_reference_{i}"], positions, layer["heads"], reduction
                )
                for i, layer in enumerate(layers)
            ]
        )

    summed = loss(Reduction.SUM)
    gradients = {f"grad_k_target_{i}": g for i, g in enumerate(torch.autograd.grad(summed, keys))}
    return {"loss_sum": summed.reshape(1), "loss_mean": loss(Reduction.MEAN).reshape(1), **gradients}


@harness.runs("sefi_ide", r"celeb basis \(PCA.*")
def celeb_basis(case: Any) -> dict[str, Tensor]:
    config = case.config
    basis = basis_of_names(
        case.inputs["name_token_ids"],
        case.weights["token_embedding"],
        config["n_components"],
        config["end_token"],
        config["num_embeds_per_token"],
    )
    directions = basis[:, 1:]
    return {"mean": basis[:, 0], "projector": directions.mT @ directions}


@harness.runs("sefi_ide", r"celeb basis ID net.*")
def face_coefficients(case: Any) -> dict[str, Tensor]:
    config, basis = case.config, case.weights["celeb_basis"]
    layers = [case.weights[f"stylegan_mlp.net.{i}.weight"] for i in range(config["mlp_depth"])]
    network = FaceCoefficients([config["fr_dim"], *map(len, layers)], config["num_embeds_per_token"])
    network.load_state_dict({k: v for k, v in case.weights.items() if k.startswith("stylegan_mlp.")})
    coefficients = network(case.inputs["face_feature"])
    return {"coefficients": coefficients, "tokens": tokens_of(coefficients, basis)}
