"""Trained methods in the miniature world: a word for one person, learned from the photos that a method may see.

tuned = learn(magicapture_of(world, photos, steps=400), steps=400)
tuned.portraits(["a photo of a person in the forest"], seeds=[1])
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
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
from ...training.data.dataset import DatasetKind, DatasetSettings, Framing, Unfit, build_dataset
from ...training.data.examples import Example
from ...training.data.photo_files import Photo
from ...training.data.portraits import Portrait, portraits
from ...training.engine import train
from ...training.export import TrainingRecord
from ...training.probe import AttentionProbe, sites_at
from ...training.recipe import Recipe
from ...training.recipes.dreambooth import DreamBoothSettings, dreambooth
from ...training.recipes.magicapture import MagiCaptureSettings, magicapture
from ...training.recipes.textual_inversion import TextualInversionSettings, textual_inversion
from ..drawing.people import SPLITS, draw_people
from ..drawing.renderer import render
from ..drawing.shots import Style, draw_shots
from ..models.base_model import base_of
from ..models.generate import generate_latents, pictures_of
from ..models.world import PHOTO_SIZE, World

SUBJECT, STYLE = "<sks>", "<style1>"
RARE = "sks"  # the vocabulary's word without a meaning, for methods that give one to a word that is there
REFERENCE_STYLE = Style.WATERCOLOUR
PERSON_TEMPLATES = ("a photo of a {} person", "a portrait of a {} person", "the face of a {} person")
STYLE_TEMPLATES = ("a {} picture of a person",)
BATCH = 2  # of every stream, in every method
# Words deviate here twice as much as SD1.5's do, and so do the rates at which they are learned. Those of the LoRAs were
# chosen on the tuning people, out of two to four.
_STYLE_PICTURES, _CLASS_PICTURES = 4, 16

Lesson = Callable[[BaseModel], Recipe]


@dataclass(frozen=True, eq=False)
class Tuned:
    """Networks that know a person. word: what stands before "person" in prompts. seconds: that the training took.
    megabytes: of the files that it leaves."""

    base: BaseModel
    word: str
    world: World
    seconds: float
    megabytes: float

    def portraits(self, prompts: Sequence[str], seeds: Sequence[int], named: bool = True) -> Tensor:
        """Pictures (B, 128, 128, 3), RGB 0..1, of prompts about "a person": this one or, not named, anyone."""
        tower = self.base.text[0]
        said = [self.base.spell(self.named(prompt) if named else prompt) for prompt in prompts]
        taught = [word for word in tower.tokenizer.get_added_vocab() if word.startswith("<|")]
        latents = generate_latents(
            self.base.unet, tower.encoder, tower.tokenizer, said, seeds,
            placeholders=[*taught, "style"],  # which composed prompts speak of
        )  # fmt: skip
        return pictures_of(self.world.codec, latents)

    def named(self, prompt: str) -> str:
        """The prompt about this person."""
        return prompt.replace("person", f"{self.word} person", 1)


def learn(lesson: Lesson, world: World, word: str, seed: int = 0) -> Tuned:
    """Train one person into a copy of the world's networks."""
    base = base_of(copy.deepcopy(world.unet), copy.deepcopy(world.text_encoder), world.codec)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        recipe = lesson(base)
        train(base, recipe, RunSettings(seed=seed, batch=BATCH, save_every=10_000), Path(folder) / "run")
        seconds = time.monotonic() - began
        record = TrainingRecord(recipe.name, base.family, sum(phase.steps for phase in recipe.phases))
        megabytes = sum(file.stat().st_size for file in recipe.save(Path(folder), "person", record)) / 1e6
    return Tuned(base, word, world, seconds, megabytes)


def portraits_of(world: World, photos: Sequence[np.ndarray], kind: DatasetKind, trigger: str) -> list[Portrait]:
    """Photos (H, W, 3) uint8 as the recipes take them: with face masks, keypoints and embeddings."""
    settings = DatasetSettings(
        kind, trigger, resolution=PHOTO_SIZE, framing=Framing.WHOLE, unfit=Unfit.KEEP, smallest_face=16,
        templates=("a photo of a {} person",),
    )  # fmt: skip
    named = [Photo(f"photo {number}", photo) for number, photo in enumerate(photos, 1)]
    recogniser: Any = world.analysis.recogniser
    return portraits(build_dataset(named, settings, world.analysis), recogniser.measure)


def textual_inversion_of(world: World, photos: Sequence[np.ndarray], steps: int, **changes: Any) -> Lesson:
    """One new vector before "person"."""
    shown = [portrait.example for portrait in portraits_of(world, photos, DatasetKind.PERSON, SUBJECT)]
    given = {"learning_rate": 1e-3, "templates": PERSON_TEMPLATES, "captions": False, "flip": 0.0} | changes
    settings = TextualInversionSettings(token=SUBJECT, steps=steps, **given)
    return lambda base: textual_inversion(base, shown, settings)


def dreambooth_of(world: World, photos: Sequence[np.ndarray], steps: int, **changes: Any) -> Lesson:
    """A LoRA that gives a rare word before "person" a meaning, with prior preservation."""
    shown = [portrait.example for portrait in portraits_of(world, photos, DatasetKind.PERSON, RARE)]
    given = {"learning_rate": 4e-4, "text_encoder": True, "text_learning_rate": 4e-5, "captions": False} | changes
    settings = DreamBoothSettings(identifier=RARE, class_prompt="a photo of a person", steps=steps, **given)
    return lambda base: dreambooth(base, shown, settings, class_photos=_class_pictures(world))


def magicapture_of(world: World, photos: Sequence[np.ndarray], steps: int, **changes: Any) -> Lesson:
    """Both phases, half of the steps each, with watercolours of other people as the style.

    The codec decodes little pictures as a whole, and the attention maps are those of the 8x8 sites.
    """
    people = portraits_of(world, photos, DatasetKind.PERSON, SUBJECT)
    styles = portraits_of(world, style_pictures(), DatasetKind.STYLE, STYLE)
    recogniser: Any = world.analysis.recogniser
    given = {
        "inversion_rate": 5e-3, "unet_rate": 2e-4, "text_rate": 2e-5,
        "map_division": 2, "decode_whole": True, "flip": 0.0,
        "person_templates": PERSON_TEMPLATES, "style_templates": STYLE_TEMPLATES,
    } | changes  # fmt: skip
    settings = MagiCaptureSettings(
        subject=SUBJECT, style=STYLE, inversion_steps=steps // 2, tuning_steps=steps - steps // 2, **given
    )
    measure = recogniser.measure if settings.lambda_id > 0 else None
    return lambda base: magicapture(base, people, styles, settings, measure=measure)


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
def _class_pictures(world: World) -> list[Example]:
    """What the untouched model makes of the class, as prior preservation wants it."""
    prompt = "a photo of a person"
    pictures = world.portraits([prompt] * _CLASS_PICTURES, range(_CLASS_PICTURES))
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
    word = base.text[0].tokenizer(base.spell(tuned.word), add_special_tokens=False).input_ids
    at = torch.tensor([[int((ids == word[0]).nonzero()[0])]])
    states = base.encode([prompt])
    try:
        for number, portrait in enumerate(shown):
            z0 = base.codec.encode(portrait.example.pixels[None]).mean
            noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(number))
            region = portrait.example.face_mask
            assert region is not None
            for timestep in timesteps:
                t = torch.tensor([timestep])
                with probe.listening(at) as maps:
                    base.predict(base.schedule.add_noise(z0, noise, t), t, states)
                heats = [m.mean(1).unflatten(-1, grid)[:, 0] for m in maps]
                share.append(float(leak_attention(heats, region)))
    finally:
        probe.detach()
    return float(np.mean(share))


METHODS: Mapping[str, tuple[Callable[..., Lesson], str]] = {
    "Textual Inversion": (textual_inversion_of, SUBJECT),
    "DreamBooth-LoRA": (dreambooth_of, RARE),
    "MagiCapture": (magicapture_of, SUBJECT),
}
