"""Trained methods in the miniature world: a word for one person, learned from the photos that a method may see.

tuned = learn(lesson_of(method, world, photos, steps=400), world, phrase_of(method))
tuned.portraits(["a photo of a person in the forest"], seeds=[1])
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.people import leak_attention
from ...training.base.model import BaseModel
from ...training.config import RunSettings
from ...training.data.captions import composed
from ...training.data.dataset import Dataset, DatasetKind, DatasetSettings, Framing, Unfit, build_dataset
from ...training.data.examples import Example
from ...training.data.photo_files import Photo
from ...training.data.portraits import Portrait, portraits
from ...training.engine import train
from ...training.export import TrainingRecord
from ...training.materials import ConceptPhotos, Materials
from ...training.methods.method import Method
from ...training.probe import AttentionProbe, sites_at
from ...training.recipe import Recipe
from ..drawing.people import SPLITS, draw_people
from ..drawing.renderer import render
from ..drawing.shots import Style, draw_shots
from ..models.base_model import base_of
from ..models.generate import generate_latents, pictures_of
from ..models.world import PHOTO_SIZE, World

SUBJECT, STYLE = "<sks>", "<style1>"
RARE = "sks"  # the vocabulary's word without a meaning, for methods that give one to a word that is there
REFERENCE_STYLE = Style.WATERCOLOUR
BATCH = 2  # of every stream, in every method
_STYLE_PICTURES = 4

Lesson = Callable[[BaseModel], Recipe]


@dataclass(frozen=True, eq=False)
class Tuned:
    """Networks that know a person. phrase: what stands for "person" in prompts. seconds: that the training took.
    megabytes: of the files that it leaves. reading: see `Recipe`."""

    base: BaseModel
    phrase: str
    world: World
    seconds: float
    megabytes: float
    reading: Callable[[], AbstractContextManager[Any]] = nullcontext

    def portraits(self, prompts: Sequence[str], seeds: Sequence[int], named: bool = True) -> Tensor:
        """Images (B, 128, 128, 3), RGB 0..1, of prompts about "a person": this one or, not named, anyone."""
        tower = self.base.text[0]
        asked = [self.named(prompt) if named else prompt for prompt in prompts]
        spelled = {self.base.spell(prompt): prompt for prompt in ["", *asked]}
        taught = [word for word in tower.tokenizer.get_added_vocab() if word.startswith("<|")]

        def read(said: Sequence[str], t: int) -> Tensor:
            """By the stage of the timestep, every prompt once."""
            assert self.base.staged is not None
            unique = list(dict.fromkeys(said))
            found = self.base.staged([spelled[prompt] for prompt in unique], torch.full((len(unique),), t))
            states = found.states if found.values is None else torch.cat([found.states, found.values], -1)
            return states[[unique.index(prompt) for prompt in said]]

        with self.reading():
            latents = generate_latents(
                self.base.unet, tower.encoder, tower.tokenizer, [self.base.spell(prompt) for prompt in asked], seeds,
                placeholders=[*taught, "style"],  # which composed prompts speak of
                read=None if self.base.staged is None else read,
            )  # fmt: skip
        return pictures_of(self.world.codec, latents)

    def named(self, prompt: str) -> str:
        """The prompt about this person."""
        return prompt.replace("person", self.phrase, 1)


def learn(lesson: Lesson, world: World, phrase: str, seed: int = 0) -> Tuned:
    """Train one person into a copy of the world's networks."""
    base = base_of(copy.deepcopy(world.unet), copy.deepcopy(world.text_encoder), world.codec)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        recipe = lesson(base)
        train(base, recipe, RunSettings(seed=seed, batch=BATCH, save_every=10_000), Path(folder) / "run")
        seconds = time.monotonic() - began
        record = TrainingRecord(recipe.name, base.family, sum(phase.steps for phase in recipe.phases))
        megabytes = sum(saved.path.stat().st_size for saved in recipe.save(Path(folder), "person", record)) / 1e6
    return Tuned(base, phrase, world, seconds, megabytes, recipe.reading)


def dataset_of(world: World, photos: Sequence[np.ndarray], kind: DatasetKind, trigger: str) -> Dataset:
    """Photos (H, W, 3) uint8 made ready for training, with face masks and keypoints."""
    settings = DatasetSettings(
        kind, trigger, resolution=PHOTO_SIZE, framing=Framing.WHOLE, unfit=Unfit.KEEP, smallest_face=16,
        templates=("a photo of a {} person",),
    )  # fmt: skip
    named = [Photo(f"photo {number}", photo) for number, photo in enumerate(photos, 1)]
    return build_dataset(named, settings, world.analysis)


def portraits_of(world: World, photos: Sequence[np.ndarray], kind: DatasetKind, trigger: str) -> list[Portrait]:
    """Photos (H, W, 3) uint8 with face masks, keypoints and the recogniser's embeddings."""
    recogniser: Any = world.analysis.recogniser
    return portraits(dataset_of(world, photos, kind, trigger), recogniser.measure)


def lesson_of(method: Method, world: World, photos: Sequence[np.ndarray], steps: int, **changes: Any) -> Lesson:
    """A training of a method, with the settings that suit this world: its phases share the steps, a style is learned
    from watercolours of other people. changes: other settings."""
    kind, concepts = method.trainable.settings, []
    for concept in method.concepts:
        if not concept.optional:
            is_style = concept.kind is DatasetKind.STYLE
            word = STYLE if is_style else word_of(method)
            shows = concept.kind or DatasetKind.PERSON
            shown = dataset_of(world, style_pictures() if is_style else photos, shows, word)
            concepts.append(ConceptPhotos(shown, word))
    words = {name: concept.word for name, concept in zip(kind.words, concepts, strict=False)}
    settings = kind(**{**words, **kind.shared_steps(steps), **method.miniature, **changes})
    recogniser: Any = world.analysis.recogniser
    measure = recogniser.measure if settings.measures_identity else None

    def generate(_base: BaseModel, prompt: str, count: int, _size: tuple[int, int]) -> list[Example]:
        return _class_pictures(world, prompt, count)

    materials = Materials(concepts, generate, measure=measure)
    return lambda base: method.trainable.make(base, materials, settings, 0)


def word_of(method: Method) -> str:
    """What the person is called by a method."""
    return SUBJECT if method.learns_words else RARE


def phrase_of(method: Method) -> str:
    """What stands for "person" in prompts of a method."""
    return f"{word_of(method)} person" if method.with_class_word else word_of(method)


def in_style(prompt: str) -> str:
    """The prompt with MagiCapture's style after it."""
    return composed(prompt, STYLE)


@lru_cache(maxsize=1)
def style_pictures() -> list[np.ndarray]:
    """Watercolours (H, W, 3) uint8 of people of the adapter's training, whom no table shows."""
    seeds = list(SPLITS["adapter"][:_STYLE_PICTURES])
    shots = draw_shots(np.asarray(seeds)).with_style(REFERENCE_STYLE)
    return list((render(draw_people(seeds), shots, PHOTO_SIZE).rgb * 255 + 0.5).byte().numpy())


@lru_cache(maxsize=1)
def _class_pictures(world: World, prompt: str, count: int) -> list[Example]:
    """What the untouched model makes of a class, as prior preservation wants it."""
    pictures = world.portraits([prompt] * count, range(count))
    return [Example(picture.permute(2, 0, 1) * 2 - 1, prompt) for picture in pictures]


@torch.no_grad()
def attention_outside(tuned: Tuned, shown: Sequence[Portrait], timesteps: Sequence[int] = (200, 400, 600)) -> float:
    """The share of the person's word's attention that lies outside the face, in noised photos of the person, 0..1."""
    base, share = tuned.base, []
    side = PHOTO_SIZE // 8  # of the latents; the maps are half as large
    grid = (side // 2, side // 2)
    probe = AttentionProbe(base.unet, sites_at(base.unet, (side, side), grid))
    prompt = tuned.named("a photo of a person")
    ids = base.ids([prompt])[0]
    word = base.text[0].tokenizer(base.spell(tuned.phrase), add_special_tokens=False).input_ids
    at = torch.tensor([[int((ids == word[0]).nonzero()[0])]])
    everything = base.encode([prompt])
    with ExitStack() as stack:
        stack.callback(probe.detach)
        stack.enter_context(tuned.reading())
        for number, portrait in enumerate(shown):
            z0 = base.codec.encode(portrait.example.pixels[None]).mean
            noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(number))
            region = portrait.example.face_mask
            assert region is not None
            for timestep in timesteps:
                t = torch.tensor([timestep])
                states = everything if base.staged is None else base.staged([prompt], t)
                with probe.recording(at) as maps:
                    base.predict(base.schedule.add_noise(z0, noise, t), t, states)
                heats = [m.mean(1).unflatten(-1, grid)[:, 0] for m in maps]
                share.append(float(leak_attention(heats, region)))
    return float(np.mean(share))
