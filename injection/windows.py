"""Where the window of an effect begins and ends in one sampling run, as thresholds of sigma, whatever the host.

Before a run only shares of it are known, which stand for noise levels; how many steps lie before one depends on
the scheduler. Once the run's sigmas are there, a border is put between two of them, so that it is exact for every
scheduler, and for samplers that look at the model between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..adapters.effects import Scope


class NoiseLevels(Protocol):
    """What turns a share of the sampling into a noise level; ComfyUI's `model_sampling` is one."""

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of the sampling: 0 = all noise, 1 = none."""
        ...


@dataclass(frozen=True)
class WindowEnd:
    """A border of a window. share: of the sampling; first_step: see `Scope.first_step`, which wins where steps are
    known; at: the highest sigma behind it, which wins over both."""

    share: float
    first_step: Callable[[int], int] | None = None
    at: float | None = None

    @property
    def is_exact(self) -> bool:
        """Whether more is known of it than its share."""
        return self.first_step is not None or self.at is not None

    def sigma(self, model_sampling: NoiseLevels, sigmas: Sequence[float]) -> float:
        """What lies above is before the border. inf: everything lies behind it, -inf: nothing does.

        sigmas: of the run, from the highest to the last, one more than there are steps; empty when unknown.
        """
        if self.at is not None:
            return just_above(self.at)
        steps = len(sigmas) - 1
        if self.first_step is None or steps < 1:
            if self.share <= 0:
                return math.inf
            return -math.inf if self.share >= 1 else float(model_sampling.percent_to_sigma(self.share))
        first = self.first_step(steps)
        if first <= 0:
            return math.inf
        if first >= steps:
            return -math.inf
        return math.sqrt(sigmas[first - 1] * sigmas[first])


START, END = WindowEnd(0.0), WindowEnd(1.0)


@dataclass(frozen=True)
class Window:
    """A part of the sampling. It holds what is below its start and not below its end, so that neighbours never share a
    sigma."""

    start: WindowEnd = START
    end: WindowEnd = END

    @classmethod
    def of(cls, scope: Scope) -> Window:
        """The window of an effect's scope."""
        return cls(WindowEnd(scope.start, scope.first_step, scope.start_sigma), WindowEnd(scope.end))

    def sigmas(self, model_sampling: NoiseLevels, sigmas: Sequence[float]) -> tuple[float, float]:
        """(highest, lowest) sigma of the window, both inclusive, in single precision as the host compares them."""
        high, low = (border.sigma(model_sampling, sigmas) for border in (self.start, self.end))
        return just_below(high), float(torch.tensor(low))


def just_below(sigma: float) -> float:
    """The largest number below in single precision."""
    return float(torch.nextafter(torch.tensor(sigma), torch.tensor(-math.inf))) if math.isfinite(sigma) else sigma


def just_above(sigma: float) -> float:
    """The smallest number above in single precision."""
    return float(torch.nextafter(torch.tensor(sigma), torch.tensor(math.inf)))


def term_sigmas(scope: Scope, model_sampling: NoiseLevels, sigmas: Sequence[float]) -> tuple[float, float] | None:
    """(highest, lowest) sigma at which a term is open, both its own, as those of the leading packs; None for all."""
    if scope.whole_run:
        return None
    if scope.first_step is not None or scope.start_sigma is not None:
        return Window.of(scope).sigmas(model_sampling, sigmas)
    return float(model_sampling.percent_to_sigma(scope.start)), float(model_sampling.percent_to_sigma(scope.end))
