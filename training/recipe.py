"""What a training method says about itself, for the engine to run: phases, samples, objectives.

A phase says what is trained, on which streams of samples, towards which objectives. A recipe is a few phases and a way
to save what came out.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..injection.sites import AttentionSite
from .base.model import Conditioning
from .base.noise import NoiseSchedule
from .config import Group, MethodSettings
from .data.examples import Example
from .export import Saved, TrainingRecord


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a batch. prompt: as the tokenizer reads it. about: what the recipe's objectives want to know.

    recurs: whether this very example will be shown again, so that its latents are worth keeping; not where every sample
    is an augmentation of its own.
    """

    example: Example
    prompt: str
    flipped: bool = False
    about: Any = None
    recurs: bool = True


Stream = Callable[[int, torch.Generator], Sample]  # the n-th sample of a phase, its chances from the generator


@dataclass(eq=False)
class Pass:
    """What one pass of the denoiser over a batch found. Latents are (batch, channels, h, w), t is (batch,).

    maps: per probed site (batch, heads, tokens, L). step: of the phase; progress: of it, 0..1. again: another pass over
    the same samples and noise at timesteps of its own. reference_maps: those with the keys of the conditioning's
    reference.
    """

    samples: Sequence[Sample]
    schedule: NoiseSchedule
    progress: float
    z0: Tensor
    noise: Tensor
    t: Tensor
    z_t: Tensor
    prediction: Tensor
    maps: Sequence[Tensor]
    again: Callable[[], Pass]
    reference_maps: Sequence[Tensor] = ()
    step: int = 0

    @property
    def target(self) -> Tensor:
        """What the denoiser should have predicted."""
        return self.schedule.target(self.z0, self.noise, self.t)

    @property
    def z0_estimate(self) -> Tensor:
        """The clean latents that the prediction implies, with gradient."""
        return self.schedule.estimate_z0(self.z_t, self.prediction.float(), self.t)


@dataclass(frozen=True)
class Objective:
    """A loss, its name in the curves, and its weight; of weight 0 it is never computed. loss: pass to scalar."""

    name: str
    loss: Callable[[Pass], Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class Recording:
    """Which attention maps the objectives want. positions: samples to (batch, tokens), places in the prompts."""

    sites: Sequence[AttentionSite]
    positions: Callable[[Sequence[Sample]], Tensor]


@dataclass(frozen=True)
class Phase:
    """A stretch of a training with its own parameters and losses.

    begin: prepares the networks and names what is trained; called once, with the modules on their device. A batch is
    `batch` samples of every stream, in their order. factor: of the learning rate, by step. timestep: drawn for the n-th
    sample of a stream. after_step: called after each optimiser step with every group's learning rate. hooks: what is
    attached to the networks while the phase is at work; entered after `begin`, left however the phase ends. show: told
    the samples of a batch before prompts are read and the denoiser predicts. fuse: what is made of the prompts'
    conditioning of a batch, with gradient, as where images of people go into it.
    """

    name: str
    steps: int
    begin: Callable[[], Sequence[Group]]
    streams: Sequence[Stream]
    objectives: Sequence[Objective]
    factor: Callable[[int], float]
    timestep: Callable[[torch.Generator, int], int]
    clip: float = float("inf")
    recording: Recording | None = None
    after_step: Callable[[Mapping[str, float]], None] | None = None
    hooks: Callable[[], AbstractContextManager[Any]] | None = None
    show: Callable[[Sequence[Sample]], None] | None = None
    fuse: Callable[[Sequence[Sample], Conditioning], Conditioning] | None = None


@dataclass(frozen=True)
class Recipe:
    """A training method, ready to run. save: writes the results into a folder under a name, and says what they are.

    reading: within it, the base model reads prompts with what was learned, where that is not in its networks.
    """

    name: str
    settings: MethodSettings
    phases: Sequence[Phase]
    trigger_words: tuple[str, ...]
    save: Callable[[Path, str, TrainingRecord], list[Saved]]
    reading: Callable[[], AbstractContextManager[Any]] = nullcontext


def uniform_timesteps(below: int) -> Callable[[torch.Generator, int], int]:
    """t ~ U{0 .. below − 1}"""
    return lambda random, n: int(torch.randint(below, (), generator=random))


def stratified_timesteps(below: int, parts: int, seed: int) -> Callable[[torch.Generator, int], int]:
    """t of each of so many equal parts in turn: every round of samples holds each part once, in an order of its own."""

    def draw(random: torch.Generator, n: int) -> int:
        part = epochs(parts, seed, n)
        low, high = -(-part * below // parts), -(-(part + 1) * below // parts)
        return int(torch.randint(low, high, (), generator=random))

    return draw


def epochs(count: int, seed: int, n: int) -> int:
    """Which of `count` items is the n-th sample: every epoch has an order of its own and holds each item once."""
    epoch, place = divmod(n, count)
    return _order(count, seed, epoch)[place]


@functools.lru_cache(maxsize=64)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


def generator(*names: object) -> torch.Generator:
    """Random numbers of their own for whatever these names name."""
    return torch.Generator().manual_seed(seed_of(*names))


def seed_of(*names: object) -> int:
    """A seed that follows from the names."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
