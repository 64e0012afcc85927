"""The forward process a denoiser is trained against: z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class Prediction(Enum):
    """What the network predicts; the value is diffusers' and the checkpoints' name for it."""

    EPSILON = "epsilon"
    VELOCITY = "v_prediction"


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The ᾱ of every timestep and the network's prediction type.

    alphas_cumprod: (steps,), float32, falling from nearly 1 to nearly 0. Latents are (batch, channels, h, w) and
    timesteps (batch,), integer, everywhere.
    """

    alphas_cumprod: Tensor
    prediction: Prediction = Prediction.EPSILON

    @classmethod
    def scaled_linear(
        cls,
        prediction: Prediction = Prediction.EPSILON,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        steps: int = 1000,
    ) -> NoiseSchedule:
        """Stable Diffusion's schedule: √β rises linearly."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0), prediction)

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """That of a diffusers scheduler, including zero-terminal-SNR and v-prediction ones."""
        return cls(scheduler.alphas_cumprod.float(), Prediction(scheduler.config.prediction_type))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t."""
        signal, sigma = self._rates(z0, t)
        return signal * z0 + sigma * noise

    def target(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: ε, or the velocity √ᾱ ε − √(1−ᾱ) z_0."""
        if self.prediction is Prediction.EPSILON:
            return noise
        signal, sigma = self._rates(z0, t)
        return signal * noise - sigma * z0

    def estimate_z0(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latents a prediction implies."""
        signal, sigma = self._rates(z_t, t)
        if self.prediction is Prediction.EPSILON:
            return (z_t - sigma * prediction) / signal
        return signal * z_t - sigma * prediction

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1−ᾱ), (batch,)."""
        acp = self.alphas_cumprod.to(t.device)[t]
        return acp / (1 - acp)

    def _rates(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        acp = self.alphas_cumprod.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))
        return acp.sqrt().to(like.dtype), (1 - acp).sqrt().to(like.dtype)
