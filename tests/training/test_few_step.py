"""Few-step sampling: the updates are those of the schedulers the distilled models were published with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.few_step import FewStep, Sampler

COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
REFERENCES = {
    Sampler.DDIM: lambda kind: DDIMScheduler(
        **COMMON, prediction_type=kind, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    ),
    Sampler.LCM: lambda kind: LCMScheduler(**COMMON, prediction_type=kind),
    Sampler.ANCESTRAL: lambda kind: EulerAncestralDiscreteScheduler(
        **COMMON, prediction_type=kind, timestep_spacing="trailing"
    ),
}
EVERY = [(sampler, kind, steps) for sampler in Sampler for kind in Prediction for steps in (1, 2, 3, 4, 8)]


def reference_run(sampler: Sampler, kind: Prediction, steps: int, predictions: list[Any], seed: int) -> Any:
    scheduler: Any = REFERENCES[sampler](kind.value)
    scheduler.set_timesteps(steps)
    x = predictions[-1] * float(scheduler.init_noise_sigma)
    random = torch.Generator().manual_seed(seed)
    chance = {} if sampler is Sampler.DDIM else {"generator": random}
    seen = []
    for prediction, t in zip(predictions, scheduler.timesteps, strict=False):
        seen.append(scheduler.scale_model_input(x, t))
        x = scheduler.step(prediction, t, x, **chance).prev_sample
    return scheduler.timesteps.tolist(), seen, x


@pytest.mark.parametrize(("sampler", "kind", "steps"), EVERY, ids=lambda value: getattr(value, "value", value))
def test_updates_are_those_of_diffusers(sampler, kind, steps):
    predictions = [torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(steps + 1)]
    timesteps, seen, wanted = reference_run(sampler, kind, steps, predictions, seed=9)
    branch = FewStep.of(sampler, NoiseSchedule.scaled_linear(kind), steps)
    assert list(branch.timesteps) == [int(t) for t in timesteps]
    random, x = torch.Generator().manual_seed(9), branch.begin(predictions[-1])
    for step in range(steps):
        torch.testing.assert_close(branch.model_input(x, step), seen[step], rtol=2e-4, atol=2e-4)
        last = step + 1 == steps and sampler is Sampler.LCM
        noise = torch.randn(x.shape, generator=random) if sampler.draws_noise and not last else None
        x = branch.update(x, predictions[step], step, noise)
    torch.testing.assert_close(x, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_gradient_reaches_every_prediction(sampler):
    branch = FewStep.of(sampler, NoiseSchedule.scaled_linear(), 3)
    predictions = [torch.randn(1, 2, 3, 3).requires_grad_() for _ in range(3)]
    x = branch.begin(torch.randn(1, 2, 3, 3))
    for step, prediction in enumerate(predictions):
        x = branch.update(x, prediction, step, torch.randn_like(x))
    gradients = torch.autograd.grad(x.square().mean(), predictions)
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)
