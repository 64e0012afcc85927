"""Textual Inversion: a new word whose vectors are all that is learned (Gal et al., ICLR 2023, arXiv 2208.01618).

    v* = argmin_v E ‖ε − ε_θ(z_t, t, c(y(v)))‖²

y is a neutral template that holds the word, v its rows in the text encoder's token table. Everything else is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ...weights.embedding_files import TokenEmbedding
from ..base.model import BaseModel
from ..base.vocabulary import NewToken, Vocabulary
from ..config import Group, MethodSettings, Moment, Rate, RateSchedule, Seen, Steps
from ..data.captions import person_templates
from ..data.dataset import Dataset
from ..data.examples import Example
from ..export import Saved, SavedKind, TrainingRecord, save_embedding
from ..materials import Materials, Trainable
from ..objectives.token_embeddings import norm_decay, std_retraction
from ..recipe import Objective, Phase, Recipe, uniform_timesteps
from . import prompts
from .denoising import Mask, denoising_losses, require_masks, seen_by


class Tether(Enum):
    """What keeps learned vectors near the words they live among, after each step."""

    NONE = "none"
    NORM = "norm"  # each row's length is pulled to the usual one (pivotal tuning, MagiCapture)
    DEVIATION = "deviation"  # all rows together are scaled towards the table's deviation (diffusers' pivotal tuning)


class TextualInversionSettings(MethodSettings):
    """Defaults: one vector from the word 'person', AdamW with decay 1e-2, 5e-4 constant, as diffusers' README."""

    title: ClassVar[str] = "Textual Inversion"
    words: ClassVar[tuple[str, ...]] = ("token",)
    kind: Literal["textual_inversion"] = "textual_inversion"
    token: str
    vectors: int = Field(default=1, ge=1, le=16)
    start: str = Field(default="person", description="Words to start from, in turn; empty: random.")
    steps: Steps = 3000
    learning_rate: Rate = 5e-4
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    clip: float | None = Field(default=None, gt=0, le=1e6, description="Of the learned rows' gradient alone.")
    tether: Tether = Tether.NONE
    templates: tuple[str, ...] = person_templates("person")
    captions: bool = Field(default=True, description="Use the photos' captions where they have any, else templates.")
    mask: Mask = Mask.NONE
    min_snr: float | None = Field(default=None, gt=0, le=1000)
    flip: float = Field(default=0.5, ge=0, le=1)

    @property
    def idle(self) -> set[str]:
        return {"templates"} if self.captions else set()

    @property
    def sees(self) -> Seen:
        return seen_by(self.captions, self.mask)

    def templates_of(self, concept: int) -> tuple[str, ...]:
        return self.templates


def textual_inversion(
    base: BaseModel,
    photos: Sequence[Example],
    settings: TextualInversionSettings,
    seed: int = 0,
    start: TokenEmbedding | None = None,
) -> Recipe:
    """The recipe, on SD1.x, SD2 and SDXL (both encoders). start: vectors to begin with instead of `settings.start`."""
    prompts.require_photos(photos, "photo")
    require_masks(photos, settings.mask, base.codec.decoder.pixels_per_cell)
    word = settings.token
    said = prompts.from_templates(settings.templates, word)
    if settings.captions:
        said = prompts.from_captions(photos, word, said)
    vocabulary = Vocabulary(base, [NewToken(word, settings.vectors, start or settings.start or None)], seed)

    def loss(found) -> Tensor:
        return denoising_losses(found, settings.mask, settings.min_snr).mean()

    inversion = Phase(
        "inversion",
        settings.steps,
        begin=lambda: [Group("rows", vocabulary.rows, settings.learning_rate, settings.weight_decay)],
        streams=[prompts.Photos(photos, said, seed, settings.flip)],
        objectives=[Objective("reconstruction", loss)],
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=uniform_timesteps(len(base.schedule)),
        clip=settings.clip or float("inf"),
        after_step=None if settings.tether is Tether.NONE else partial(hold, vocabulary, settings.tether),
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        return [Saved(save_embedding(vocabulary.embedding(word), folder, name, record), SavedKind.EMBEDDING)]

    return Recipe(settings.title, settings, [inversion], (word,), save)


def hold(vocabulary: Vocabulary, tether: Tether, learning_rates: Mapping[str, float]) -> None:
    """Pull the learned rows back towards the words around them, in place."""
    for kind, rows in vocabulary.rows.items():
        if tether is Tether.NORM:
            rows.copy_(norm_decay(rows, learning_rates["rows"], vocabulary.usual_norm(kind)))
        elif tether is Tether.DEVIATION:
            rows.copy_(std_retraction(rows, vocabulary.usual_deviation(kind)))


# In the registry of methods -------------------------------------------------------------------------------------------


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    return {"start": values["start_words"].strip() or datasets[0].class_word, "captions": True}


def make(base: BaseModel, materials: Materials, settings: TextualInversionSettings, seed: int) -> Recipe:
    (person,) = materials.concepts
    photos = person.dataset.called(person.word).examples()
    return textual_inversion(base, photos, settings, seed, person.start)


TRAINABLE = Trainable(TextualInversionSettings, make, choose)
