"""Where a network is in its sampling run: which chunks its batch has, and which windows are open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import Scope
from ...errors import LikenessError
from ..plan import Role
from ..windows import NoiseLevels, Window, term_sigmas

_FIRST, _LAST = 999999999.9, 0.0  # what ComfyUI takes for the sigmas before and behind every step
_LEAST_SIGNAL = 4.9e-8  # ᾱ of the last timestep where a schedule ends in pure noise, as ComfyUI has it
_ROUNDING = 1e-5  # relative


@dataclass(frozen=True, eq=False)
class SamplingRun:
    """One sampling run, as windows see it: the same steps are in a window as in ComfyUI.

    sigmas: noise levels of the steps, from the highest, and the last one that is reached; one more than there are
    steps. evaluations: the level of each of the scheduler's timesteps, of which a step may have several. levels: what a
    share of the sampling stands for.
    """

    sigmas: tuple[float, ...]
    evaluations: tuple[float, ...]
    levels: NoiseLevels

    @classmethod
    def of(cls, scheduler: Any, mu: float = 1.15) -> SamplingRun:
        """The run of a diffusers scheduler whose timesteps are set.

        mu: the shift of a scheduler with dynamic shifting, as it was set with; ComfyUI's own for FLUX otherwise.
        LikenessError for a scheduler that tells no noise levels.
        """
        signal = getattr(scheduler, "alphas_cumprod", None)
        given = getattr(scheduler, "sigmas", None)
        timesteps = torch.as_tensor(scheduler.timesteps).float().cpu()
        if signal is not None:
            levels = DiscreteLevels(signal)
            if given is None or len(given) != len(timesteps) + 1:
                given = torch.cat([levels.at(timesteps), torch.zeros(1)])
            return cls.through(torch.as_tensor(given), levels)
        if given is None or not hasattr(scheduler.config, "shift"):
            raise LikenessError(
                f"The scheduler {type(scheduler).__name__} has no known noise levels: choose one of diffusion "
                "(alphas_cumprod) or of flow matching (shift)."
            )
        dynamic = scheduler.config.get("use_dynamic_shifting", False)
        shift = math.exp(mu) if dynamic else float(scheduler.config.shift)
        return cls.through(torch.as_tensor(given), FlowLevels(shift))

    @classmethod
    def through(cls, sigmas: Tensor, levels: NoiseLevels) -> SamplingRun:
        """A run through these noise levels (evaluations + 1,), the last one included."""
        found = sigmas.float().tolist()
        steps = [sigma for sigma, before in zip(found, [math.inf, *found], strict=False) if sigma != before]
        return cls(tuple(steps), tuple(found[:-1]), levels)

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of the sampling. A step's own, where they differ by rounding alone: on which side of a
        border a step lies must not depend on who computed its noise level."""
        if percent <= 0:
            return _FIRST
        if percent >= 1:
            return _LAST
        sigma = self.levels.percent_to_sigma(percent)
        nearest = min(self.sigmas, key=lambda known: abs(known - sigma))
        return nearest if math.isclose(nearest, sigma, rel_tol=_ROUNDING) else sigma


class DiscreteLevels:
    """Noise levels of diffusion with trained timesteps: σ² = (1 − ᾱ) / ᾱ, between them linear in log σ."""

    def __init__(self, signal: Tensor) -> None:
        """signal: ᾱ of every timestep."""
        signal = torch.as_tensor(signal).double().cpu().clamp(min=_LEAST_SIGNAL)
        self._log_sigmas = ((1 - signal) / signal).log() / 2

    def at(self, timesteps: Tensor) -> Tensor:
        """σ at (fractional) timesteps, in single precision."""
        t = timesteps.double().clamp(0, len(self._log_sigmas) - 1)
        return torch.lerp(self._log_sigmas[t.floor().long()], self._log_sigmas[t.ceil().long()], t.frac()).exp().float()

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of the sampling, which is one of the trained timesteps."""
        return float(self.at(torch.tensor((1 - percent) * (len(self._log_sigmas) - 1))))


@dataclass(frozen=True)
class FlowLevels:
    """Noise levels of flow matching: σ = s τ / (1 + (s − 1) τ) with τ falling from 1 to 0."""

    shift: float

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of the sampling."""
        tau = 1 - percent
        return self.shift * tau / (1 + (self.shift - 1) * tau)


class Place:
    """What the parts of one network's effects have in common.

    roles: one per chunk of the batch, (UNCOND, COND) for a guided pipeline's. run: None where the caller tells no place
    in the sampling; then every effect acts all the time. A run is at its first step until it is moved.
    """

    def __init__(self, roles: Sequence[Role], run: SamplingRun | None = None) -> None:
        self.roles = tuple(roles)
        self.run = run
        self.sigma = run.sigmas[0] if run else math.inf
        self._limits: dict[tuple[Scope, bool], tuple[float, float] | None] = {}

    def holds_term(self, scope: Scope) -> bool:
        """Whether the window of an attention or block term is open; its borders are its own."""
        return self._holds(scope, term=True)

    def holds(self, scope: Scope) -> bool:
        """Whether the window of a prompt edit or weight delta is open; neighbours share no sigma."""
        return self._holds(scope, term=False)

    @property
    def step(self) -> tuple[int, int]:
        """The step that is being made, and how many there are, by which the windows of ControlNets go."""
        if self.run is None:
            return 0, 1
        sigmas = self.run.sigmas
        return sum(self.sigma <= sigma for sigma in sigmas[1:-1]), len(sigmas) - 1

    def _holds(self, scope: Scope, term: bool) -> bool:
        if self.run is None or scope.whole_run:
            return True
        key = (scope, term)
        if key not in self._limits:
            find = term_sigmas if term else lambda scope, *run: Window.of(scope).sigmas(*run)
            self._limits[key] = find(scope, self.run, self.run.sigmas)
        limits = self._limits[key]
        return limits is None or limits[1] <= self.sigma <= limits[0]
