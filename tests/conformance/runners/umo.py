"""UMO: the matching reward from images and from embeddings, and the confusion of identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conformance import harness
from torch import Tensor

from likeness.evaluation.people import wanted_of
from likeness.faces.iresnet import iresnet
from likeness.faces.recognition import FrozenRecogniser
from likeness.training.objectives.matching import Reward, embeddings


@harness.runs("umo", r"matching reward", tolerances={"picture_crops": 2e-3, "grad": 0.15})
def matching_reward(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    recogniser = FrozenRecogniser(iresnet(case.weights), "case")
    picture = given["picture"].clone().requires_grad_()
    people = embeddings(given["target"], given["target_landmarks"], recogniser)
    faces = embeddings(picture, given["picture_landmarks"], recogniser)
    reward = Reward()(people, faces)
    (grad,) = torch.autograd.grad(config["output_scale"] * reward, picture)
    crops = recogniser.template.crops(given["picture"].expand(len(faces), -1, -1, -1), given["picture_landmarks"])
    stride = config["crop_stride"]
    return {
        "picture_crops": crops[..., ::stride, ::stride],
        "target_embeddings": people,
        "picture_embeddings": faces,
        "reward": reward,
        "grad": grad,
    }


@harness.runs("umo", r"matching reward from embeddings")
def from_embeddings(case: Any) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for k, (m, n) in enumerate(case.config["sizes"]):
        people = case.inputs.get(f"target_{k}", torch.zeros(m, 1))
        faces = case.inputs.get(f"picture_{k}", torch.zeros(n, 1)).clone().requires_grad_()
        reward = Reward()(people, faces)
        outputs[f"reward_{k}"] = reward
        if m and n:
            (outputs[f"grad_{k}"],) = torch.autograd.grad(case.config["output_scale"] * reward, faces)
    return outputs


@harness.runs("umo", r"identity confusion")
def confusion(case: Any) -> dict[str, Tensor]:
    config = case.config
    tables = [
        case.inputs.get(f"table_{k}", torch.zeros(shape)).double().numpy() for k, shape in enumerate(config["shapes"])
    ]
    figures = [wanted_of(table) for table in tables]
    outputs: dict[str, Tensor] = {}
    for task in (None, *sorted(set(config["tasks"]))):
        chosen = [one for one, of in zip(figures, config["tasks"], strict=True) if task in (None, of)]
        for name in ("id_sim", "id_conf"):
            values = [value for one in chosen for value in getattr(one, name)]
            if values:
                outputs[name if task is None else f"{name}_{task}"] = torch.tensor(10 * np.mean(values))
    return outputs
