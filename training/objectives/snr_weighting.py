"""Weights per sample by the signal-to-noise ratio of its timestep. All take and return (batch,)."""

from __future__ import annotations

from torch import Tensor

from ..base.noise import Prediction

CAP = 1000.0  # of the ratio in the weights of sd-scripts: the first timesteps would dominate otherwise


def min_snr(snr: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for velocity (Hang et al., arXiv 2303.09556)."""
    capped = snr.clamp(max=gamma)
    return capped / snr if prediction is Prediction.EPSILON else capped / (snr + 1)


def debiased(snr: Tensor, prediction: Prediction) -> Tensor:
    """1 / √SNR for ε, 1 / (SNR + 1) for velocity, SNR capped (Yu et al., arXiv 2310.08442; kohya-ss/sd-scripts)."""
    snr = snr.clamp(max=CAP)
    return snr.rsqrt() if prediction is Prediction.EPSILON else 1 / (snr + 1)


def like_noise(snr: Tensor) -> Tensor:
    """SNR / (SNR + 1), capped: a velocity loss with this weight counts timesteps as an ε loss does (sd-scripts)."""
    snr = snr.clamp(max=CAP)
    return snr / (snr + 1)
