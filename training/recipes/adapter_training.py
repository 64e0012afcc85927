"""What the trainings of all adapters share: settings, samples of people, dropped conditions, and an adapter at work.

    L = E ‖ε − ε_θ(z_t, t, c_text, c_person)‖²

with c_text, c_person or both left out at random, so that guidance and an unconditioned half exist. The image encoders
are frozen and what they say of a photo is computed once; the person of a sample is the photo itself, or, so that the
adapter does not learn to copy, another photo of the same person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ...adapters.effects import AttentionTerm, Merge, Projector
from ...adapters.types import IdentityTokens
from ...injection.diffusers import inject
from ...injection.plan import Role, uniform
from ...injection.sites import sites_of_diffusers_unet
from ..base.model import BaseModel
from ..cache import TensorCache
from ..config import Group, MethodSettings, Moment, Rate, RateSchedule, Settings, Steps
from ..data.dataset import Framing
from ..data.examples import Example
from ..data.people import People, PersonPhoto
from ..recipe import Objective, Pass, Phase, Sample, Stream, epochs, seed_of, uniform_timesteps
from .denoising import denoising_losses
from .prompts import happens

CACHE_MEGABYTES = 1024  # of encoded photos in memory; the rest goes to disk


class DropRates(Settings):
    """How often the person, the text, or both are left out. The defaults are IP-Adapter's."""

    person: float = Field(default=0.05, ge=0, le=1)
    text: float = Field(default=0.05, ge=0, le=1)
    both: float = Field(default=0.05, ge=0, le=1)

    def draw(self, random: torch.Generator) -> tuple[bool, bool]:
        """Whether the person and whether the text is left out, of one number per sample."""
        fate = float(torch.rand((), generator=random))
        if fate < self.person:
            return True, False
        if fate < self.person + self.text:
            return False, True
        both = fate < self.person + self.text + self.both
        return both, both


class AdapterSettings(MethodSettings):
    """What all adapters' trainings are told."""

    steps: Steps = 100_000
    learning_rate: Rate = 1e-4
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    clip: float = Field(default=0.0, ge=0, description="Largest norm of the gradients; 0: not clipped, as published.")
    drop: DropRates = DropRates()
    framing: Framing = Field(default=Framing.HEAD, description="Which part of a photo is trained on.")
    another_photo: float = Field(
        default=0.5, ge=0, le=1, description="Share of samples that are conditioned on another photo of the person."
    )

    @property
    def together(self) -> int:
        """How many people a photo may show."""
        return 1

    @property
    def trains_encoder(self) -> bool:
        """Whether the image encoder is part of the adapter."""
        return False

    @property
    def largest_norm(self) -> float:
        """Of the gradients."""
        return self.clip or float("inf")


@dataclass(frozen=True, eq=False)
class Shown:
    """Whose identity a sample is conditioned on. dropped: it is left out. seed: of whatever else is drawn for it."""

    target: PersonPhoto
    reference: PersonPhoto
    dropped: bool
    seed: int


@dataclass(frozen=True)
class PeopleStream:
    """A stream of people's photos with their captions, each once per epoch."""

    people: People
    drop: DropRates
    another_photo: float = 0.0
    seed: int = 0
    caption: Callable[[PersonPhoto], str] = lambda photo: photo.example.caption

    @property
    def examples(self) -> list[Example]:
        """All that may be shown."""
        return [photo.example for photo in self.people.photos]

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        target = self.people.photos[epochs(len(self.people), self.seed, n)]
        no_person, no_text = self.drop.draw(random)
        reference = target
        others = [photo for photo in self.people.of_person[target.person] if photo is not target]
        if happens(self.another_photo, random) and others:
            reference = others[int(torch.randint(len(others), (), generator=random))]
        seed = int(torch.randint(2**62, (), generator=random))
        prompt = "" if no_text else self.caption(target)
        return Sample(target.example, prompt, about=Shown(target, reference, no_person, seed))


def shown(samples: Sequence[Sample]) -> list[Shown]:
    """Whom these samples show."""
    return [sample.about for sample in samples]


class EncodedPhotos:
    """What frozen encoders say of photos, by name, without a batch dimension; computed once for each photo."""

    def __init__(self, encode: Callable[[PersonPhoto], Mapping[str, Tensor]], megabytes: int = CACHE_MEGABYTES) -> None:
        self._encode, self._megabytes = encode, megabytes
        self._cache: TensorCache | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what was computed, in memory and in a folder of its own, until this is left."""
        with TemporaryDirectory(prefix="likeness-photos-") as folder:
            self._cache = TensorCache(Path(folder), self._megabytes)
            try:
                yield
            finally:
                self._cache = None

    @contextmanager
    def kept_with(self, *others: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """The same, with what else is attached while a phase is at work."""
        with ExitStack() as attached:
            for each in (self.kept, *others):
                attached.enter_context(each())
            yield

    def of(self, photos: Sequence[PersonPhoto], device: torch.device | str) -> dict[str, Tensor]:
        """name -> (batch, ...)"""
        with torch.no_grad():
            found = [self._of(photo) for photo in photos]
        return {name: torch.stack([each[name] for each in found]).to(device) for name in found[0]}

    def _of(self, photo: PersonPhoto) -> Mapping[str, Tensor]:
        if self._cache is None:
            return self._encode(photo)
        return self._cache.get(photo, lambda: self._encode(photo))


class LiveTerm:
    """An adapter's attention term in the UNet, projected anew at every step, with gradient to the adapter."""

    def __init__(self, unet: nn.Module, projector: Projector) -> None:
        self.unet = unet
        self._sites = sites_of_diffusers_unet(unet)
        empty = torch.empty(1, 1, 1)
        self._term = AttentionTerm(projector, IdentityTokens(empty, empty), uniform(1.0, self._sites))
        self._injected: Any = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The term's processors in the UNet until this is left."""
        self._injected = inject(self.unet, [self._term], roles=(Role.COND,), live=True)
        try:
            yield
        finally:
            self._injected.eject()

    def show(self, tokens: Tensor, merge: Merge | None = None) -> None:
        """Whom the next passes attend to: (batch, n, dim); and how that joins the text, None for a sum."""
        # A batch has conditioned rows alone, so one unconditioned row is projected, for its shape.
        pair = IdentityTokens(tokens, tokens[:1].detach())
        self._injected.injections = [replace(self._term, tokens=pair, merge=merge)]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The bare UNet, bit by bit."""
        before, self._injected.injections = self._injected.injections, []
        try:
            yield
        finally:
            self._injected.injections = before


def reconstruction() -> Objective:
    """L, the plain mean of the squared error."""

    def loss(found: Pass) -> Tensor:
        return denoising_losses(found).mean()

    return Objective("reconstruction", loss)


def adapter_phase(
    base: BaseModel,
    settings: AdapterSettings,
    stream: Stream,
    objectives: Sequence[Objective],
    *,
    begin: Callable[[], Sequence[Group]],
    hooks: Callable[[], AbstractContextManager[Any]],
    show: Callable[[Sequence[Sample]], None],
    name: str = "adapter",
) -> Phase:
    """The phase of an adapter's training: its settings' steps, schedule and largest norm, timesteps of all alike."""
    return Phase(
        name,
        settings.steps,
        begin=begin,
        streams=[stream],
        objectives=objectives,
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=uniform_timesteps(len(base.schedule)),
        clip=settings.largest_norm,
        hooks=hooks,
        show=show,
    )


def without(values: Tensor, dropped: Sequence[bool], empty: Tensor | None = None) -> Tensor:
    """Rows of values (batch, ...) with those of left out people replaced: by zeros, or by `empty` (1, ...)."""
    rows = torch.tensor(dropped, device=values.device).view(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, torch.zeros_like(values) if empty is None else empty.to(values), values)


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """A new network's weights are drawn from this seed; the caller's random numbers are put back on leaving."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        yield
