"""SeFi-IDE: one photo as a pair of tokens per stage of denoising, and nothing else (arXiv 2402.00631).

    L = ‖ε − ε_θ(z_t, t, c^K_s, c^V_s)‖²  +  λ Σ_i ‖A_t,i − A_r,i‖²        s = stage of t

c^K_s is the prompt with the stage's token for keys, c^V_s that with its token for values. A_t,i is where the i-th word
of the prompt is attended to, A_r,i where the same queries attend to it in the prompt of the class word. Every word of
the prompt is compared, so that the subject takes no attention from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...adapters.sefi_ide.file import Subject
from ...adapters.sefi_ide.networks import STAGES
from ...weights.concepts import base_signature, is_changeable
from ...weights.embedding_files import TokenEmbedding
from ..base.model import BaseModel
from ..base.stage_tokens import StageTokens
from ..config import Group, MethodSettings, Moment, Rate, RateSchedule, Seen, Steps, Weight
from ..data.captions import parse_templates
from ..data.dataset import Dataset
from ..data.examples import Example
from ..export import Saved, SavedKind, TrainingRecord, save_embedding, save_subject
from ..materials import Materials, Trainable
from ..objectives.subject_attention import Reduction, difference_of_maps, subject_attention
from ..probe import refocusing_grid, sites_up_to
from ..recipe import Objective, Pass, Phase, Recipe, Recording, Sample, stratified_timesteps, uniform_timesteps
from . import prompts
from .denoising import Mask, denoising_losses, require_masks, seen_by

TEMPLATES = ("a photo of the face of {}", "a photo of {}", "the face of {}", "a portrait of {}")


class Tokens(Enum):
    """What is trained; the value is what a user chooses. The file is the same."""

    GENERATOR = "generator"  # ProSpect's block makes them from the class word
    TABLE = "table"


class Layers(Enum):
    """Where attention is compared; the value is what a user chooses."""

    COARSE = "half resolution and coarser"  # 32x32 and less of SD1.5 at 512, all of SDXL
    ALL = "all"


RATES = {Tokens.GENERATOR: 1e-4, Tokens.TABLE: 5e-3}


class SefiIdeSettings(MethodSettings):
    """Defaults: λ and the number of stages are the paper's, the rest its parents' (ProSpect, Celeb Basis)."""

    title: ClassVar[str] = "SeFi-IDE"
    words: ClassVar[tuple[str, ...]] = ("placeholder",)
    kind: Literal["sefi_ide"] = "sefi_ide"
    placeholder: str = "<subject>"
    class_word: str = Field(
        default="person", description="One token, in the subject's place where attention is compared."
    )
    start: str = Field(default="", description="The word that all tokens start from; empty: the class word.")
    tokens: Tokens = Tokens.GENERATOR
    stages: int = Field(default=STAGES, ge=1, le=50)
    stratified: bool = Field(default=True, description="Draws every stage equally often; False: at random.")
    steps: Steps = 800
    learning_rate: Rate | None = Field(default=None, description="None: 1e-4 for the generator, 5e-3 for the table.")
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    lambda_attention: Weight = Field(default=0.003, description="λ; less copies the photo, more forgets the subject.")
    reduction: Reduction = Reduction.SUM
    layers: Layers = Layers.COARSE
    templates: tuple[str, ...] = TEMPLATES
    captions: bool = Field(default=False, description="Use the photos' captions where they have any, else templates.")
    mask: Mask = Mask.NONE
    token_dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the tokens' features that is zeroed.")
    plain_embedding: bool = Field(default=False, description="Write one vector for all stages, too; likeness is lost.")

    @property
    def idle(self) -> set[str]:
        groups = (
            (self.captions, {"templates"}),
            (self.lambda_attention == 0, {"reduction", "layers"}),
            (True, {"plain_embedding"}),
        )
        return {name for without_effect, group in groups if without_effect for name in group}

    @property
    def sees(self) -> Seen:
        return seen_by(self.captions, self.mask)

    def templates_of(self, concept: int) -> tuple[str, ...]:
        return self.templates


def sefi_ide(
    base: BaseModel,
    photos: Sequence[Example],
    settings: SefiIdeSettings,
    seed: int = 0,
    start: TokenEmbedding | None = None,
) -> Recipe:
    """The recipe, on SD1.x, SD2 and SDXL (both encoders). start: a vector to begin with instead of a word's."""
    prompts.require_photos(photos, "photo")
    require_masks(photos, settings.mask, base.codec.decoder.pixels_per_cell)
    word = settings.placeholder
    said = prompts.from_templates(settings.templates, word)
    if settings.captions:
        said = prompts.from_captions(photos, word, said)
    signature = base_signature({name: value for name, value in base.unet.state_dict().items() if is_changeable(name)})
    tokens = StageTokens(
        base,
        word,
        settings.class_word,
        start or settings.start or settings.class_word,
        settings.stages,
        settings.tokens is Tokens.GENERATOR,
        settings.token_dropout,
        seed,
    )
    places = Places(base)

    def reconstruction(found: Pass) -> Tensor:
        return denoising_losses(found, settings.mask).mean()

    def attention(found: Pass) -> Tensor:
        counted, pairs = places.counted(found.samples), zip(found.maps, found.reference_maps, strict=True)
        return subject_attention([difference_of_maps(*pair, settings.reduction, counted) for pair in pairs])

    recording = None
    if settings.lambda_attention > 0:
        cell = base.codec.decoder.pixels_per_cell
        size = photos[0].size[0] // cell, photos[0].size[1] // cell
        largest = size if settings.layers is Layers.ALL else refocusing_grid(size, 2)
        recording = Recording(sites_up_to(base.unet, size, largest), places.positions)

    timesteps = len(base.schedule)
    inversion = Phase(
        "inversion",
        settings.steps,
        begin=lambda: [Group("tokens", tokens.parameters, settings.learning_rate or RATES[settings.tokens])],
        streams=[prompts.Photos(photos, said, seed)],
        objectives=[
            Objective("reconstruction", reconstruction),
            Objective("attention", attention, settings.lambda_attention),
        ],
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=(
            stratified_timesteps(timesteps, settings.stages, seed)
            if settings.stratified
            else uniform_timesteps(timesteps)
        ),
        recording=recording,
        hooks=tokens.reading,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        training = {
            "base_model": signature,
            "lambda": str(settings.lambda_attention),
            "reduction": settings.reduction.value,
            "steps": str(record.steps),
        }
        subject = Subject(word, settings.class_word, tokens.tables(), timesteps, training)
        saved = [Saved(save_subject(subject, folder, name, record), SavedKind.SUBJECT)]
        if settings.plain_embedding:
            path = save_embedding(subject.plain_embedding(), folder, f"{name}-lossy", record)
            saved.append(Saved(path, SavedKind.EMBEDDING))
        return saved

    return Recipe(settings.title, settings, [inversion], (word,), save, tokens.reading)


class Places:
    """Which tokens of the prompts are compared: those behind the start, up to the end token and with it."""

    def __init__(self, base: BaseModel) -> None:
        end = base.text[0].tokenizer.eos_token_id
        self._device = lambda: base.unet.device
        self._end_of = lru_cache(256)(lambda prompt: base.ids([prompt])[0].tolist().index(end))

    def positions(self, samples: Sequence[Sample]) -> Tensor:
        """(batch, n), as many as the longest prompt has."""
        longest = max(self._end_of(sample.prompt) for sample in samples)
        return torch.arange(1, longest + 1, device=self._device()).expand(len(samples), -1)

    def counted(self, samples: Sequence[Sample]) -> Tensor | None:
        """(batch, n), which of these belong to a sample's own prompt; None: all."""
        ends = [self._end_of(sample.prompt) for sample in samples]
        if len(set(ends)) == 1:
            return None
        return self.positions(samples) <= torch.tensor(ends, device=self._device())[:, None]


# In the registry of methods -------------------------------------------------------------------------------------------


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    chosen: dict[str, Any] = {"class_word": datasets[0].class_word}
    if templates := parse_templates(values["templates"]):
        chosen["templates"] = templates
    return chosen


def make(base: BaseModel, materials: Materials, settings: SefiIdeSettings, seed: int) -> Recipe:
    (subject,) = materials.concepts
    photos = subject.dataset.called(subject.word).examples()
    return sefi_ide(base, photos, settings, seed, subject.start)


TRAINABLE = Trainable(SefiIdeSettings, make, choose)
