"""A training run that can be stopped at any moment and resumed bit for bit: what every training of the pack is made of.

    run = Run(folder, {"unet": unet}, optimizer, steps=4000, seed=1)
    run.go(lambda step, random: loss_of(batch(step), random))

Nothing random is ever carried from step to step: step n draws from a generator seeded by (seed, n), and its batch
follows from n. So a checkpoint is weights, optimiser and a number, and a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import LikenessError
from ..storage import write_whole
from .muon import Together
from .team import Team

StepLoss = Callable[[int, torch.Generator], Tensor]
Report = Callable[[int, float], None]


class Diverged(Exception):
    """A loss, a gradient or a state that is not a number any more. The message says what and when."""


class Average:
    """The exponential moving average of a network's weights, float32, with a warm-up: min(decay, (1+n)/(10+n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)

    @torch.no_grad()
    def load(self, shadow: dict[str, Tensor]) -> None:
        """Go on from a saved average, on whatever device this one is."""
        for key, value in shadow.items():
            self.shadow[key].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, for a look at what has been learned."""
        own = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.load_state_dict(self.shadow)
        try:
            yield
        finally:
            module.load_state_dict(own)


def warm_then_decay(warm_up: int = 100, decay_from: float = 0.6) -> Callable[[float, int], float]:
    """The learning rate's factor: rises over the first steps, stays, and falls as a cosine from that share of the run.

    A run that is prolonged while it is still constant has lost nothing.
    """

    def factor(progress: float, step: int) -> float:
        fall = max(0.0, (progress - decay_from) / (1 - decay_from))
        return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * fall))

    return factor


@dataclass
class Run:
    """One optimisation: its networks by name, its optimiser, and the folder in which it survives.

    averages: which networks also have their moving average kept. seconds: stop after this many, with the state saved.
    team: the processes that work on it together; the first of them writes. device: where its random numbers are drawn.
    """

    folder: Path
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer | Together
    steps: int
    seed: int = 0
    factor: Callable[[float, int], float] = field(default_factory=warm_then_decay)
    averages: dict[str, Average] = field(default_factory=dict)
    clip: float = 1.0
    save_every: int = 200
    team: Team = field(default_factory=Team)
    device: torch.device | str = "cpu"
    step: int = 0
    saved: int | None = None  # the step of the state on the disk
    between_steps: bool = True  # or in the middle of one, when the state is that of no step

    @property
    def file(self) -> Path:
        """Where the state is kept."""
        return self.folder / "state.pt"

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of one step, others for every process of the team."""
        seed = (self.seed * 1_000_003 + self.team.rank * 1_000_000_007 + step) % 2**63
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def writes(self) -> bool:
        """Whether it is this process that writes the state for all."""
        return self.team.rank == 0

    def save(self) -> None:
        """Write the state. Raises `Diverged` instead of replacing a good one by one that is not finite."""
        if broken := first_broken(self.state()):
            raise Diverged(f"The weights or what belongs to them ({broken}) are not numbers after step {self.step}")
        self.write()

    def write(self) -> None:
        """Write the state as it is; a crash at any moment leaves the old one or the new one whole."""
        if self.writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(self.file, lambda part: torch.save(self.state(), part))
            except (OSError, RuntimeError) as error:
                raise LikenessError(
                    f"The training's state could not be written to '{self.file}' ({error}): free some space and start "
                    "again; it resumes from the last saved state."
                ) from error
        self.saved = self.step

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averages": {name: average.shadow for name, average in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, average in self.averages.items():
            average.load(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def resume(self) -> bool:
        """Load the saved state if there is one. LikenessError when it belongs to other networks."""
        if not self.file.exists():
            return False
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            broken = first_broken(state)
            self.load_state(state)
        except Exception as error:
            raise LikenessError(
                f"'{self.file}' is not the state of this training (damaged, or of other networks): "
                "move it away to start a new training."
            ) from error
        if broken:
            raise LikenessError(
                f"The state '{self.file}' holds values that are not numbers ({broken}): move it away and start a new "
                "training with a lower learning rate."
            )
        self.saved = self.step
        return True

    def go(
        self,
        loss_of: StepLoss,
        report: Report | None = None,
        seconds: float = math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until `steps`, until time is up, or until someone cancels. True when the run is complete.

        The state is saved on every way out, unless a step was cut short or left values that are not finite: then the
        last good one stays, and LikenessError says which that is.
        """
        end = time.monotonic() + seconds
        try:
            while self.step < self.steps and not self.team.agreed(time.monotonic() >= end or cancelled()):
                self._advance(loss_of, report)
                if self.step % self.save_every == 0:
                    self.save()
            self.save()
        except BaseException as error:
            # No sentence for the user is hidden by a second one that saving may have to say.
            with suppress(LikenessError) if isinstance(error, (Diverged, LikenessError)) else nullcontext():
                if self.between_steps and not first_broken(self.state()):
                    self.write()
            if isinstance(error, Diverged):
                raise LikenessError(
                    f"{error}: lower the learning rate and start a new training. {self._kept()}"
                ) from error
            raise
        return self.step >= self.steps

    def _kept(self) -> str:
        if self.saved is None:
            return "No state was saved before."
        return f"The last good state, of step {self.saved}, is kept in '{self.file}'."

    def _advance(self, loss_of: StepLoss, report: Report | None) -> None:
        scale = self.factor(self.step / self.steps, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * scale
        self.optimizer.zero_grad(set_to_none=True)
        value = self.gradients(loss_of)
        self.between_steps = False
        self.optimizer.step()
        self.after_step()
        self.step += 1
        for name, average in self.averages.items():
            average.update(self.modules[name], self.step)
        self.between_steps = True
        if report is not None:
            report(self.step, value)

    def gradients(self, loss_of: StepLoss) -> float:
        """Give all parameters the step's clipped gradients; returns the loss. `Diverged` when it is not a number."""
        loss = loss_of(self.step, self.generator(self.step))
        value = self.finite(float(loss.detach()))
        loss.backward()
        self.team.mean([p.grad for p in self.trained() if p.grad is not None])
        nn.utils.clip_grad_norm_(self.trained(), self.clip)
        return value

    def after_step(self) -> None:
        """Whatever else a step does to the weights."""

    def trained(self) -> list[nn.Parameter]:
        """The parameters that have a gradient now."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def finite(self, value: float, what: str = "loss") -> float:
        """The value. Raises `Diverged` when it is not a number."""
        if not math.isfinite(value):
            raise Diverged(f"The {what} became {value} at step {self.step}")
        return value


def first_broken(value: Any, name: str = "") -> str:
    """The name of the first tensor that holds NaN or infinity, in dictionaries and lists as states are; '' for none."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.numel() == 0:
            return ""
        largest = torch.linalg.vector_norm(value.detach(), math.inf)  # which takes no memory, unlike isfinite
        return "" if math.isfinite(float(largest)) else name
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return next((found for key, part in parts if (found := first_broken(part, f"{name}/{key}".strip("/")))), "")


def rows_of_step(step: int, batch: int, count: int, seed: int) -> np.ndarray:
    """The rows (batch,) of step `step`: every epoch a new order of all `count` rows, each once."""
    per_epoch = max(1, count // batch)
    order = np.random.default_rng([seed, step // per_epoch]).permutation(count)
    at = step % per_epoch * batch
    return order[at : at + batch]
