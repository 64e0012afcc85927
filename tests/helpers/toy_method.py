"""A trained method of a page, as the contract test adds it: two concepts, a word each, and a timestep that decides what
the values of cross-attention are projected from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from likeness.injection.key_values import separate_values
from likeness.training.base.model import BaseModel, Conditioning
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.training.config import Group, MethodSettings, Rate, Steps
from likeness.training.export import Saved, SavedKind, TrainingRecord, save_embedding
from likeness.training.materials import Materials, Trainable
from likeness.training.methods.method import ConceptInput, Method, rate, steps
from likeness.training.recipe import Objective, Pass, Phase, Recipe, uniform_timesteps
from likeness.training.recipes import prompts
from likeness.training.recipes.denoising import denoising_losses


class ToySettings(MethodSettings):
    title: ClassVar[str] = "Toy Stages"
    words: ClassVar[tuple[str, ...]] = ("person", "place")
    kind: Literal["toy_stages"] = "toy_stages"
    person: str
    place: str
    steps: Steps = 10
    learning_rate: Rate = 1e-2


def make(base: BaseModel, materials: Materials, settings: ToySettings, seed: int) -> Recipe:
    words = (settings.person, settings.place)
    vocabulary = Vocabulary(
        base, [NewToken(concept.word, start=concept.start or "person") for concept in materials.concepts], seed
    )
    concepts = [
        prompts.TaughtConcept(concept.dataset.examples(), prompts.from_templates(("a photo of {}",), concept.word))
        for concept in materials.concepts
    ]

    def staged(said: list[str], t: Tensor) -> Conditioning:
        """Late in denoising, the values are those of a prompt without the learned words."""
        learned, plain = base.encode(said), base.encode(["a photo"] * len(said))
        return replace(learned, values=torch.where((t < 500)[:, None, None], plain.states, learned.states))

    @contextmanager
    def hooks() -> Iterator[None]:
        base.staged = staged
        try:
            with separate_values(base.unet):
                yield
        finally:
            base.staged = None

    def loss(found: Pass) -> Tensor:
        return denoising_losses(found).mean()

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        embeddings = [vocabulary.embedding(word) for word in words]
        return [Saved(save_embedding(found, folder, name, record), SavedKind.EMBEDDING) for found in embeddings]

    phase = Phase(
        "words",
        settings.steps,
        begin=lambda: [Group("rows", vocabulary.rows, settings.learning_rate)],
        streams=prompts.joint(concepts, seed),
        objectives=[Objective("reconstruction", loss)],
        factor=lambda step: 1.0,
        timestep=uniform_timesteps(len(base.schedule)),
        hooks=hooks,
    )
    return Recipe(settings.title, settings, [phase], words, save)


TOY = Method(
    kind="toy_stages",
    title="Toy Stages",
    description="Learns a person and a place.",
    concepts=(ConceptInput("person", "person", "The person."), ConceptInput("place", "place", "The place.")),
    clip="The text encoder.",
    load=lambda: Trainable(ToySettings, make),
    usage=lambda datasets, embeddings: " in ".join(embeddings),
    first=(steps("steps", 10, "Of the training."), rate(1e-2, "Of both words.")),
)
