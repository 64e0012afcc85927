"""Break-A-Scene: masked loss, attention loss and the maps of a whole UNet, through the probe that training uses."""

from __future__ import annotations

import re
from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from torch import Tensor

from likeness.training.objectives.break_a_scene import (
    average_attention,
    concept_attention,
    concept_positions,
    union_error,
)
from likeness.training.objectives.reconstruction import squared_error
from likeness.training.probe import AttentionProbe, sites_at

MAP = re.compile(r"map_\d+_(down|up)_(\d+)")


def masks_of(case: Any) -> Tensor:
    """(batch, concepts, H, W)"""
    return case.inputs["instance_masks"].squeeze(2)


def as_official(average: Tensor) -> Tensor:
    """(batch, tokens, h, w) -> (batch, h, w, tokens)"""
    return average.movedim(1, -1)


@harness.runs("break_a_scene", r"attention loss")
def losses(case: Any) -> dict[str, Tensor]:
    given, config, batch = case.inputs, case.config, case.config["batch"]
    grid, rows = (config["resolution"],) * 2, len(given["input_ids"])
    maps = []
    for name in sorted(given):
        found = MAP.fullmatch(name)
        if found and int(found[2]) == grid[0] * grid[1]:  # the official form is (rows · heads, pixels, tokens)
            maps.append(given[name].unflatten(0, (rows, -1)).transpose(2, 3)[-batch:])
    average = average_attention(maps, grid)
    tokens = given["placeholder_ids"][given["concept_ids"]]
    at = concept_positions(given["input_ids"][-batch:], tokens)
    chosen = torch.stack([image[places] for image, places in zip(average, at, strict=True)])
    attention = config["lambda_attention"] * concept_attention(chosen, masks_of(case)).mean()
    prediction, target = given["model_pred"], given["target"]
    denoising = union_error(prediction[-batch:], target[-batch:], masks_of(case)).mean()
    if config.get("prior_preservation"):
        prior = squared_error(prediction[:-batch], target[:-batch]).mean()
        denoising = denoising + config["prior_loss_weight"] * prior
    return {
        "average_attention": as_official(average)[-1],
        "attention_loss": attention,
        "diffusion_loss": denoising,
        "total": denoising + attention,
    }


@harness.runs("break_a_scene", r"unet")
def unet(case: Any) -> dict[str, Tensor]:
    given, config, batch = case.inputs, case.config, case.config["batch"]
    network, latent, context = common.unet_of(case), given["latent"], given["context"]
    grid = (config["resolution"],) * 2
    probe = AttentionProbe(network, sites_at(network, tuple(latent.shape[-2:]), grid))
    every = torch.arange(context.shape[1]).expand(len(latent), -1)
    with torch.no_grad(), probe.recording(every) as maps:
        eps = network(latent, given["timestep"], context).sample
    probe.detach()
    average = average_attention([each[-batch:] for each in maps], grid)
    chosen = torch.stack([image[places] for image, places in zip(average, given["positions"], strict=True)])
    loss = config["lambda_attention"] * concept_attention(chosen, masks_of(case)).mean()
    return {"eps": eps, "average_attention": as_official(average), "attention_loss": loss}
