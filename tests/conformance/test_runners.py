"""Runners are general over the variant: cases that the golden folder lacks are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conformance import harness
from conformance.runners import ip_adapter as runner
from conformance.runners import ip_adapter_options as options
from helpers import official

WIDTH, SITES = 32, [(32, 32)] * 3


def case(weights, inputs, config, expected=()) -> harness.Case:
    tensors = dict.fromkeys(expected, torch.zeros(1))
    return harness.Case(Path("x"), "ip_adapter", "two adapters", config, 0.0, 0.0, weights, inputs, tensors)


def file_of(image_proj: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    groups = official.groups(image_proj, SITES, with_lora=False)
    return {f"adapter_{number}.{g}.{key}": value for g, part in groups.items() for key, value in part.items()}


@pytest.mark.parametrize("photos", [1, 3])
def test_a_faceid_adapter_beside_one_that_reads_images(photos):
    weights = {**file_of(official.pooled(WIDTH), 0), **file_of(official.identity(WIDTH), 1)}
    pooled = official.pooled(WIDTH)["proj.weight"].shape[1]
    inputs = {"embeds_0": torch.randn(1, 2, pooled), "embeds_1": torch.randn(1, photos, 512)}
    first, second = runner.adapters_of(case(weights, inputs, {"kinds": ["ip-adapter", "ip-adapter-faceid"]}))
    assert not first[0].needs_embedding and second[0].needs_embedding
    assert first[1].cond.shape == (2, 4, WIDTH) and second[1].cond.shape == (photos, 4, WIDTH)


@pytest.mark.parametrize("asked", [["w_0"], ["w_0", "w_invert_0"], ["w_0", "image_1_0", "image_2_0"]])
def test_schedules_give_what_the_case_has(asked):
    row = {"weights": "0,1", "timing": "linear", "frames": 3, "n": 2}
    assert set(options.weight_schedules(case({}, {}, {"cases": [row]}, asked))) == set(asked)
