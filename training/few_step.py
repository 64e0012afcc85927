"""Sampling in a few steps, differentiably: from noise to the clean latents x_0 that a distilled model is heading for.

Every sampler is a chain of linear updates x' = f(x, prediction), so that a gradient reaches whatever made the
predictions. x is what the update works on; `model_input` is what the network is given of it.

    DDIM        x' = √ᾱ' x̂_0 + √(1−ᾱ') ε                      SDXL-Lightning, Hyper-SD
    LCM         x' = √ᾱ' d + √(1−ᾱ') z,  d = c_out x̂_0 + c_skip x
    ANCESTRAL   y' = y + ε (σ_down − σ) + σ_up z,  y = x √(1+σ²)    SD-Turbo, SDXL-Turbo

The last step ends in x̂_0 (of LCM in d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .base.noise import NoiseSchedule, Prediction

LCM_STEPS = 50  # of the solver that LCM was distilled from
LCM_SIGMA, LCM_SCALING = 0.5, 10.0


class Sampler(Enum):
    """Which few-step sampler a distilled model was made for."""

    DDIM = "ddim"
    LCM = "lcm"
    ANCESTRAL = "ancestral"

    @property
    def draws_noise(self) -> bool:
        """Whether new noise is drawn between steps."""
        return self is not Sampler.DDIM


def trailing_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """Evenly spaced ones that begin with the noisiest: 999, 749, 499, 249 for four."""
    return [round(train_steps - k * train_steps / steps) - 1 for k in range(steps)]


def lcm_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """Some of the fifty that LCM was distilled at: 999, 759, 499, 259 for four."""
    every = train_steps // LCM_STEPS
    known = [train_steps - 1 - k * every for k in range(LCM_STEPS)]
    return [known[k * LCM_STEPS // steps] for k in range(steps)]


@dataclass(frozen=True, eq=False)
class FewStep:
    """A sampler on a noise schedule. timesteps: falling, one for each step."""

    sampler: Sampler
    schedule: NoiseSchedule
    timesteps: tuple[int, ...]

    @classmethod
    def of(cls, sampler: Sampler, schedule: NoiseSchedule, steps: int = 4) -> FewStep:
        """With the timesteps that its models were distilled at."""
        spaced = lcm_timesteps if sampler is Sampler.LCM else trailing_timesteps
        return cls(sampler, schedule, tuple(spaced(steps, len(schedule))))

    @property
    def sigmas(self) -> Tensor:
        """σ = √((1−ᾱ)/ᾱ) of every step, and 0 behind the last: (steps + 1,), float32."""
        acp = self.schedule.alphas_cumprod.cpu().double()[list(self.timesteps)]
        return torch.cat([((1 - acp) / acp).sqrt(), acp.new_zeros(1)]).float()

    def begin(self, noise: Tensor) -> Tensor:
        """What the first update works on, from x_T ~ N(0, I)."""
        return noise * float(self.sigmas[0]) if self.sampler is Sampler.ANCESTRAL else noise

    def model_input(self, x: Tensor, step: int) -> Tensor:
        """What the network is given at a step."""
        return x / (float(self.sigmas[step]) ** 2 + 1) ** 0.5 if self.sampler is Sampler.ANCESTRAL else x

    def update(self, x: Tensor, prediction: Tensor, step: int, noise: Tensor | None = None) -> Tensor:
        """The latents behind a step, of those before it and what the network predicted there. noise: z ~ N(0, I) of
        every step but the last, where the sampler draws any."""
        return _UPDATES[self.sampler](self, x, prediction, step, noise)

    def acp(self, step: int) -> float:
        """ᾱ at a step; 1 behind the last."""
        return float(self.schedule.alphas_cumprod[self.timesteps[step]]) if step < len(self.timesteps) else 1.0

    def clean(self, x: Tensor, prediction: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """x̂_0 and ε that a prediction on `x` (as the network saw it) implies."""
        signal, sigma = self.acp(step) ** 0.5, (1 - self.acp(step)) ** 0.5
        if self.schedule.prediction is Prediction.VELOCITY:
            return signal * x - sigma * prediction, signal * prediction + sigma * x
        return (x - sigma * prediction) / signal, prediction


def _ddim(of: FewStep, x: Tensor, prediction: Tensor, step: int, noise: Tensor | None) -> Tensor:
    x0, eps = of.clean(x, prediction, step)
    # As published: a whole number of timesteps earlier, the next one where the number of steps divides the schedule's.
    earlier = of.timesteps[step] - len(of.schedule) // len(of.timesteps)
    last = step + 1 == len(of.timesteps)
    after = 1.0 if last or earlier < 0 else float(of.schedule.alphas_cumprod[earlier])
    return after**0.5 * x0 + (1 - after) ** 0.5 * eps


def _lcm(of: FewStep, x: Tensor, prediction: Tensor, step: int, noise: Tensor | None) -> Tensor:
    scaled, variance = LCM_SCALING * of.timesteps[step], LCM_SIGMA**2
    skip, out = variance / (scaled**2 + variance), scaled / (scaled**2 + variance) ** 0.5
    denoised = out * of.clean(x, prediction, step)[0] + skip * x
    if step + 1 == len(of.timesteps):
        return denoised
    assert noise is not None
    after = of.acp(step + 1)
    return after**0.5 * denoised + (1 - after) ** 0.5 * noise


def _ancestral(of: FewStep, x: Tensor, prediction: Tensor, step: int, noise: Tensor | None) -> Tensor:
    sigma, after = float(of.sigmas[step]), float(of.sigmas[step + 1])
    eps = of.clean(of.model_input(x, step), prediction, step)[1]
    up = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
    moved = x + eps * ((after**2 - up**2) ** 0.5 - sigma)
    return moved if noise is None or up == 0 else moved + up * noise


_UPDATES: dict[Sampler, Callable[[FewStep, Tensor, Tensor, int, Tensor | None], Tensor]] = {
    Sampler.DDIM: _ddim,
    Sampler.LCM: _lcm,
    Sampler.ANCESTRAL: _ancestral,
}
