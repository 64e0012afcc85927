"""DreamBooth: losses with prior preservation, in both batch forms in use."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from torch import Tensor

from likeness.training.data.examples import Example
from likeness.training.objectives import reconstruction, snr_weighting
from likeness.training.recipe import Pass, Sample
from likeness.training.recipes import dreambooth as recipe
from likeness.training.recipes.denoising import denoising_losses


@harness.runs("dreambooth", r"prior_preservation_loss")
def prior_preservation_loss(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    schedule, t = common.schedule_of(config), given["timesteps"]
    prediction = given["pred"].requires_grad_()
    nothing = Sample(Example(given["latents"][0], ""), "")
    found = Pass(
        [nothing] * len(t),
        schedule,
        0.0,
        given["latents"],
        given["noise"],
        t,
        given["latents"],
        prediction,
        (),
        lambda: found,
    )
    if config["prior_preservation"]:
        parts = recipe.preserved(found, gamma=config["snr_gamma"])
        total = parts.instance + config["prior_loss_weight"] * parts.prior
        outputs = {"instance": parts.instance, "prior": parts.prior, "total": total}
    else:
        instance = denoising_losses(found, gamma=config["snr_gamma"]).mean()
        outputs = {"instance": instance, "total": instance}
    outputs["grad_pred"] = torch.autograd.grad(outputs["total"], prediction)[0]
    return common.scaled(case, outputs)


@harness.runs("dreambooth", r"weighted_loss")
def weighted_loss(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    schedule, t = common.schedule_of(config), given["timesteps"]
    prediction = given["pred"].requires_grad_()
    target = schedule.target(given["latents"], given["noise"], t)
    if config["masked"]:
        losses = reconstruction.masked_squared_error(prediction, target, given["alpha_mask"].unsqueeze(1))
    else:
        losses = reconstruction.squared_error(prediction, target)
    losses, snr = losses * given["loss_weights"], schedule.snr(t)
    if config["min_snr_gamma"] is not None:
        losses = losses * snr_weighting.min_snr(snr, config["min_snr_gamma"], schedule.prediction)
    if config["scale_v_like_noise"]:
        losses = losses * snr_weighting.like_noise(snr)
    if config["debiased"]:
        losses = losses * snr_weighting.debiased(snr, schedule.prediction)
    total = losses.mean()
    gradient = torch.autograd.grad(total, prediction)[0]
    return common.scaled(case, {"per_sample": losses, "total": total, "grad_pred": gradient})
