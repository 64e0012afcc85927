"""PuLID's training: alignment losses, identity loss, face crops with gradient, and few-step sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from conformance import harness
from torch import Tensor

from likeness.faces.align import ARCFACE
from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.few_step import FewStep, Sampler
from likeness.training.objectives.pulid import Alignment, Reduction, Weights, align_layer, identity_loss


@harness.runs("pulid", r"training alignment losses")
def alignment(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    steps, layers = range(config["steps"]), range(len(config["layers"]))
    weights = Weights(config["lambda_sem"], config["lambda_layout"])
    queries = {name: value.clone().requires_grad_() for name, value in given.items() if name.startswith("q_tid_")}

    def each(reduction: Reduction, merged: bool = False) -> Alignment:
        """Of every step and layer: (steps, layers)."""
        found = [
            [
                align_layer(queries[f"q_tid_{s}_{n}"], given[f"q_t_{s}_{n}"], given[f"k_{n}"], reduction, merged)
                for n in layers
            ]
            for s in steps
        ]
        semantic = torch.stack([torch.stack([layer.semantic for layer in row]) for row in found])
        return Alignment(semantic, torch.stack([torch.stack([layer.layout for layer in row]) for row in found]))

    outputs, means = {}, {}
    for reduction in Reduction:
        found, merged = each(reduction), each(reduction, merged=True)
        name = reduction.value
        means[name] = Alignment(found.semantic.mean(), found.layout.mean())
        outputs |= {
            f"each_sem_{name}": found.semantic,
            f"each_layout_{name}": found.layout,
            f"each_sem_{name}_merged": merged.semantic,
            f"sem_{name}": means[name].semantic,
            f"layout_{name}": means[name].layout,
            f"sem_{name}_merged": merged.semantic.mean(),
            f"align_{name}": weights.alignment(means[name]),
        }
    gradients = torch.autograd.grad(outputs["align_mse"], list(queries.values()))
    return outputs | {f"grad_{name}": 100 * value for name, value in zip(queries, gradients, strict=True)}


@harness.runs("pulid", r"training ID loss")
def person(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    generated = given["generated"].clone().requires_grad_()
    loss = identity_loss(generated, given["reference"], given["found"].bool())
    weights = Weights(config["lambda_sem"], config["lambda_layout"], config["lambda_id"])
    others = Alignment(torch.tensor(config["l_sem"]), torch.tensor(config["l_layout"]))
    return {
        "cos": F.cosine_similarity(generated, given["reference"], dim=-1),
        "loss": loss,
        "total": weights.total(torch.tensor(config["l_diff"]), others, loss),
        "grad_generated": torch.autograd.grad(loss, generated)[0],
    }


@harness.runs("pulid", r"training face crop")
def face_crop(case: Any) -> dict[str, Tensor]:
    given, size = case.inputs, case.config["size"]
    template = replace(ARCFACE, points=ARCFACE.points * (size / ARCFACE.size), size=size)
    crop = template.crops(given["image"].unsqueeze(0), given["landmarks"].unsqueeze(0))[0]
    return {"crop": crop, "matrix": torch.from_numpy(template.matrix(given["landmarks"].double().numpy()))}


@harness.runs("pulid", r"training fast branch .*")
def fast_branch(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    schedule = NoiseSchedule.scaled_linear(
        Prediction(config["prediction"]), config["beta_start"], config["beta_end"], config["train_steps"]
    )
    branch = FewStep.of(Sampler(config["kind"]), schedule, config["steps"])
    assert list(branch.timesteps) == given["timesteps"].tolist()
    x, outputs = branch.begin(given["x_T"]), {}
    for step in range(config["steps"]):
        x = branch.update(x, given[f"eps_{step}"], step, given.get(f"z_{step}"))
        outputs[f"x_{step}"] = x
    if branch.sampler is Sampler.ANCESTRAL:
        outputs["sigmas"] = branch.sigmas
    return outputs
