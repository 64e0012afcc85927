"""Trainings that two processes share: recipes on the small base, by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.people import people_materials, toy_clip_file
from likeness.training.data.examples import Example
from likeness.training.data.zoom import Zoom
from likeness.training.recipe import Recipe
from likeness.training.recipes.adapter_training import DropRates
from likeness.training.recipes.custom_diffusion import CustomDiffusionSettings, custom_diffusion
from likeness.training.recipes.ip_adapter import IPAdapterSettings, ip_adapter
from likeness.training.recipes.photomaker import PhotoMakerSettings, photomaker
from likeness.training.recipes.sefi_ide import SefiIdeSettings, Tokens, sefi_ide

STEPS = 4


def _concept(base: Any, photos: Sequence[Example]) -> Recipe:
    """With class images. Zoom would draw other masks, and their means are over each process's own."""
    settings = CustomDiffusionSettings(steps=STEPS, zoom=Zoom.NONE, start=("person",), learning_rate=1e-3)
    others = [replace(photo, caption="a photo of a person") for photo in photos]
    return custom_diffusion(base, [photos], settings, 0, [others])


def _subject(base: Any, photos: Sequence[Example]) -> Recipe:
    """A table: a network's dropout is drawn by each process."""
    settings = SefiIdeSettings(steps=STEPS, tokens=Tokens.TABLE, lambda_attention=0.5, start="forest")
    return sefi_ide(base, photos, settings)


def _faceid(base: Any, photos: Sequence[Example]) -> Recipe:
    settings = IPAdapterSettings(steps=STEPS, rank=2, drop=DropRates(person=0.3))
    return ip_adapter(base, people_materials(), settings)


def _photomaker(base: Any, photos: Sequence[Example]) -> Recipe:
    """People are left out so often that a process has a batch without a gradient to the encoder. Whether the mask
    counts is drawn once for each batch."""
    settings = PhotoMakerSettings(
        steps=STEPS, rank=2, smallest_face=0, masked_share=0, encoder_rate=1e-3, drop=DropRates(person=0.5)
    )
    with tempfile.TemporaryDirectory() as folder:
        encoder = toy_clip_file(Path(folder) / "clip.safetensors")
        return photomaker(base, people_materials(encoder=encoder), settings)


RECIPES: dict[str, Callable[[Any, Sequence[Example]], Recipe]] = {
    "custom_diffusion": _concept,
    "sefi_ide": _subject,
    "faceid": _faceid,
    "photomaker": _photomaker,
}
