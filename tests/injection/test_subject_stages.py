"""SeFi-IDE's keys and values of every stage as prompt edits in diffusers: golden UNets at their timesteps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import harness
from torch import Tensor

from likeness.adapters.sefi_ide.prompt import parts_of, reading
from likeness.injection.diffusers import DiscreteLevels, SamplingRun, apply_effects
from likeness.injection.plan import Role
from likeness.training.base.noise import NoiseSchedule

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "sefi_ide" and "tiny UNet" in harness.read_metadata(path)["variant"]
]
LEVELS = DiscreteLevels(NoiseSchedule.scaled_linear().alphas_cumprod)


class World:
    """A golden UNet, and the edits by which a prompt reads the contexts of the case, stage by stage."""

    def __init__(self, path: Any) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        self.case = harness.read_case(path)
        config, self.given = dict(self.case.config), self.case.inputs
        stages = config.pop("stages")
        self.unet = UNet2DConditionModel(**config).eval()
        self.unet.load_state_dict(self.case.weights_below("unet."))
        keys, values = self.given["context_k"], self.given["context_v"]
        parts = enumerate(reversed(parts_of([stages])))
        self.edits = [reading(keys[i : i + 1], values[i : i + 1], low, high) for i, (low, high) in parts]
        self.run = SamplingRun.through(LEVELS.at(torch.linspace(999, 0, 21)), LEVELS)

    def predict(self, t: Tensor, text: Tensor) -> Tensor:
        """For as many rows as there are texts."""
        names = ("text_embeds", "time_ids")
        added = {name: self.given[name].expand(len(text), -1) for name in names if name in self.given}
        sample = self.given["sample"].expand(len(text), -1, -1, -1)
        with torch.no_grad():
            return self.unet(sample, t, text, added_cond_kwargs=added).sample


@pytest.fixture(params=CASES, ids=[path.stem for path in CASES])
def golden(request) -> World:
    return World(request.param)


def test_a_conditioned_row_reads_its_stage_and_the_other_stays_as_it_was(golden):
    shape = golden.given["context_k"][:1].shape
    text = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(1))
    without = [golden.predict(t, text)[:1] for t in golden.given["timesteps"]]
    found = []
    with apply_effects(golden.unet, golden.edits, (Role.UNCOND, Role.COND), run=golden.run) as applied:
        for t, plain in zip(golden.given["timesteps"], without, strict=True):
            applied.at_sigma(float(LEVELS.at(t)))
            unconditioned, conditioned = golden.predict(t, text).chunk(2)
            assert torch.equal(unconditioned, plain)
            found.append(conditioned)
    case = golden.case
    torch.testing.assert_close(torch.cat(found), case.expected["noise_pred"], rtol=case.rtol, atol=max(case.atol, 1e-5))
    assert torch.equal(golden.predict(golden.given["timesteps"][-1], text)[:1], without[-1])
