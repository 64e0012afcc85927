"""PhotoVerse: its adapters, the words in the prompt, the two branches, the draw, the losses, and whole UNets."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from conformance.runners._training import schedule_of, text_encoder_of
from torch import Tensor
from torch.nn.functional import linear

from likeness.adapters.effects import AttentionTerm, WeightDelta
from likeness.adapters.networks import KeyValueSites, build_key_values
from likeness.adapters.photoverse.fusion import Branches, Fusion, drawn
from likeness.adapters.photoverse.networks import build_adapter
from likeness.adapters.photoverse.prompt import insert
from likeness.adapters.types import IdentityTokens
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import AttentionSite, sites_of_diffusers_unet
from likeness.training.base.noise import Prediction
from likeness.training.objectives import photoverse as losses
from likeness.training.objectives.reconstruction import squared_error
from likeness.weights.lora import LoraPair

# The networks ---------------------------------------------------------------------------------------------------------


@harness.runs("photoverse", r"adapter, (elite|literal) kind")
def adapter(case: Any) -> dict[str, Tensor]:
    network = build_adapter(case.weights)
    assert network.sizes.kind.value == case.config.get("kind", "elite")
    features = [case.inputs[f"features_{i}"] for i in range(case.config["m"])]
    outputs = {"tokens": network(features)}
    for name in case.expected:
        if name.startswith("token_"):
            outputs[name] = network(features[: int(name.removeprefix("token_")) + 1])[:, -1:]
    return outputs


@harness.runs("photoverse", r"pseudo-word insertion.*")
def insertion(case: Any) -> dict[str, Tensor]:
    given = case.inputs
    whole = case.weights_below("text.")
    table = case.weights.get("token_embedding.weight")
    if table is None:
        table = whole["text_model.embeddings.token_embedding.weight"]
    words = table[given["input_ids"]]
    embeddings = insert(words, given["placeholder_index"].tolist(), given["pseudo_words"])
    if not whole:
        return {"inputs_embeds": embeddings}
    encoder = text_encoder_of(case, whole)
    hook = encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    with torch.no_grad():
        states = encoder(given["input_ids"]).last_hidden_state
    hook.remove()
    return {"inputs_embeds": embeddings, "last_hidden_state": states}


# One attention layer --------------------------------------------------------------------------------------------------


@harness.runs("photoverse", r"random fusion rule")
def random_fusion(case: Any) -> dict[str, Tensor]:
    names = {"text_only": Branches.TEXT, "visual_only": Branches.IMAGE, "sum": Branches.BOTH}
    order = [names[name] for name in case.config["modes"]]
    borders = torch.tensor([case.config["r1"], case.config["r2"]]).tolist()  # in the precision of u
    found = [drawn(u, *borders) for u in case.inputs["u"].tolist()]
    return {
        "mode_index": torch.tensor([order.index(one) for one in found]),
        "gamma": torch.tensor([one.value.gamma for one in found]),
        "sigma": torch.tensor([one.value.sigma for one in found]),
    }


@harness.runs("photoverse", r"dual-branch attention.*")
def attention(case: Any) -> dict[str, Tensor]:
    given, config, weights = case.inputs, case.config, case.weights

    def text_weight(name: str) -> Tensor:
        if not config["rank"]:
            return weights[f"{name}.weight"]
        pair = LoraPair(weights[f"lora.{name}.A"], weights[f"lora.{name}.B"])
        return weights[f"{name}.weight"] + pair.delta(config["alpha"])

    heads = config["heads"]
    q = linear(given["hidden_states"], weights["to_q.weight"])
    text = attend(q, *(linear(given["text_features"], text_weight(name)) for name in ("to_k", "to_v")), heads)
    keys, values = (linear(given["image_features"], weights[f"visual.{name}.weight"]) for name in ("to_k", "to_v"))
    outputs = {"visual_value_reg": losses.visual_regulariser([values]).reshape(1)}
    for name, factors in config["modes"].items():
        merge = Fusion(factors["gamma"], factors["sigma"])
        term = SiteTerm(split_heads(keys, heads), split_heads(values, heads), merge=merge)
        out = add_identity(text, q, [term])
        outputs[name] = linear(out, weights["to_out.0.weight"], weights["to_out.0.bias"])
    return outputs


# Losses ---------------------------------------------------------------------------------------------------------------


@harness.runs("photoverse", r"losses")
def loss_terms(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    values = [given[f"v_s_{i}"] for i in range(len(config["layers"]))]
    diffusion = squared_error(given["model_pred"], given["noise"]).mean()
    face = losses.face_loss(given["face_reference"], given["face_generated"])
    text, visual = losses.text_regulariser(given["p_f"]), losses.visual_regulariser(values)
    total = diffusion + config["lambda_face"] * face + config["lambda_rt"] * text + config["lambda_rv"] * visual
    found = {"diffusion": diffusion, "face": face, "rt": text, "rv": visual, "total": total}
    return {f"loss_{name}": value.reshape(1) for name, value in found.items()}


@harness.runs("photoverse", r"one-step x0 estimate")
def estimate(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    settings = {**config, "beta_schedule": config["schedule"], "num_train_timesteps": config["T"]}

    def clean(prediction: Prediction) -> Tensor:
        schedule = schedule_of({**settings, "prediction_type": prediction.value})
        return schedule.estimate_z0(given["z_t"], given["model_output"], given["timesteps"])

    return {
        "x0_epsilon": clean(Prediction.EPSILON),
        "x0_v": clean(Prediction.VELOCITY),
        "active_mask": losses.active(given["timesteps"], config["t_max"]).long(),
    }


# Whole UNets ----------------------------------------------------------------------------------------------------------

OWN_KEYS = {"alpha", "gamma", "sigma", "m", "rank"}


def unet_config(case: Any) -> dict[str, Any]:
    """diffusers' settings of the case's UNet."""
    return {key: value for key, value in case.config.items() if key not in OWN_KEYS}


def unet_weights(case: Any) -> dict[str, Tensor]:
    own = case.weights_below("unet.")
    return own or {key: value for key, value in case.weights.items() if not key.startswith("adapter.")}


class Sites(KeyValueSites):
    """The case's image branch alone; its tokens are given."""

    name = "golden"

    def __init__(self, case: Any, sites: tuple[AttentionSite, ...]) -> None:
        super().__init__()
        own = case.weights_below("adapter.")
        self.ip_adapter = build_key_values(
            {
                f"{site.slot}.{layer}_ip.weight": own[f"{site.diffusers_path}.attn2.visual.{layer}.weight"]
                for site in sites
                for layer in ("to_k", "to_v")
            }
        )


def effects_of(case: Any, sites: tuple[AttentionSite, ...], projector: Any = None) -> list[Any]:
    """What the case puts into its UNet."""
    config, own = case.config, case.weights_below("adapter.")
    tokens = case.inputs["image_features"]
    projector = projector or Sites(case, sites)
    merge = Fusion(config["gamma"], config["sigma"])
    nothing = torch.zeros_like(tokens)
    effects: list[Any] = [AttentionTerm(projector, IdentityTokens(tokens, nothing), uniform(1.0, sites), merge=merge)]
    if config["rank"]:
        pairs = {
            f"{site.diffusers_path}.attn2.{layer}": LoraPair(
                *(own[f"{site.diffusers_path}.attn2.lora.{layer}.{half}"] for half in "AB")
            )
            for site in sites
            for layer in ("to_k", "to_v")
        }
        effects.append(WeightDelta("golden", "golden", pairs, config["alpha"]))
    return effects


@harness.runs("photoverse", r"end to end dual branch")
def whole_unet(case: Any) -> dict[str, Tensor]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**unet_config(case)).eval()
    unet.load_state_dict(unet_weights(case))
    given = case.inputs
    effects = effects_of(case, sites_of_diffusers_unet(unet))
    with apply_effects(unet, effects, [Role.COND]), torch.no_grad():
        return {"noise_pred": unet(given["sample"], given["timestep"], given["encoder_hidden_states"]).sample}
