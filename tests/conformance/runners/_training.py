"""What the runners of training cases share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.weights.checkpoint_layout import load_encoder_weights


def scaled(case: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs times the case's power-of-two factors."""
    factors = case.config.get("output_scale", {})
    return {name: value * factors.get(name, 1.0) for name, value in outputs.items()}


def schedule_of(config: dict[str, Any]) -> NoiseSchedule:
    assert config["beta_schedule"] == "scaled_linear"
    return NoiseSchedule.scaled_linear(
        Prediction(config.get("prediction_type", "epsilon")),
        config["beta_start"],
        config["beta_end"],
        config["num_train_timesteps"],
    )


def unet_of(case: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**case.config["unet"])
    unet.load_state_dict(case.weights_below("unet."))
    return unet.eval().requires_grad_(False)


def added_conditions(case: Any) -> dict[str, Tensor] | None:
    """SDXL's pooled text and time ids, where a case has them."""
    names = ("text_embeds", "time_ids")
    return {name: case.inputs[name] for name in names} if "time_ids" in case.inputs else None


def forward(case: Any, unet: Any) -> Tensor:
    given = case.inputs
    with torch.no_grad():
        conditions = added_conditions(case)
        return unet(
            given["sample"], given["timestep"], given["encoder_hidden_states"], added_cond_kwargs=conditions
        ).sample


def text_encoder_of(case: Any, weights: dict[str, Tensor]) -> Any:
    """The text encoder of a case; it has a projection where the weights have one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(**case.config["text"])
    if "text_projection.weight" in weights:
        encoder = CLIPTextModelWithProjection(config)
    else:
        encoder = CLIPTextModel(config)
    load_encoder_weights(encoder, weights)
    return encoder.eval().requires_grad_(False)


def encoded(encoder: Any, input_ids: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        result = encoder(input_ids, output_hidden_states=True)
    outputs = {"last_hidden_state": result.last_hidden_state, "penultimate": result.hidden_states[-2]}
    if hasattr(result, "text_embeds"):
        return {**outputs, "text_embeds": result.text_embeds}
    return {**outputs, "pooled": result.pooler_output}
