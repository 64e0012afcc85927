"""Where the window of an effect begins and ends in one sampling run, as thresholds of sigma.

Before a run only shares of it are known, which the host turns into timesteps; how many steps lie before one depends on
the scheduler. Once the run's sigmas are there, a border is put between two of them, so that it is exact for every
scheduler, and for samplers that look at the model between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.effects import Scope


@dataclass(frozen=True)
class WindowEnd:
    """A border of a window. share: of the sampling; first_step: see `Scope.first_step`, which wins where steps are
    known."""

    share: float
    first_step: Callable[[int], int] | None = None

    def sigma(self, model_sampling: Any, sigmas: Sequence[float]) -> float:
        """What lies above is before the border. inf: everything lies behind it, -inf: nothing does.

        sigmas: of the run, from the highest to the last, one more than there are steps; empty when unknown.
        """
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
        return cls(WindowEnd(scope.start, scope.first_step), WindowEnd(scope.end))

    def sigmas(self, model_sampling: Any, sigmas: Sequence[float]) -> tuple[float, float]:
        """(highest, lowest) sigma of the window, both inclusive, in single precision as the host compares them."""
        high, low = (border.sigma(model_sampling, sigmas) for border in (self.start, self.end))
        return just_below(high), float(torch.tensor(low))


def just_below(sigma: float) -> float:
    """The largest number below in single precision."""
    return float(torch.nextafter(torch.tensor(sigma), torch.tensor(-math.inf))) if math.isfinite(sigma) else sigma


def sigmas_of_run(arguments: Sequence[Any]) -> list[float]:
    """The sigmas among the arguments of OUTER_SAMPLE: (noise, latent image, sampler, sigmas, …)."""
    return [float(sigma) for sigma in arguments[3]]
