"""Trainings that two processes share: recipes on the small base, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from likeness.training.data.examples import Example
from likeness.training.data.zoom import Zoom
from likeness.training.recipe import Recipe
from likeness.training.recipes.custom_diffusion import CustomDiffusionSettings, custom_diffusion
from likeness.training.recipes.sefi_ide import SefiIdeSettings, Tokens, sefi_ide

STEPS = 4


def _concept(base: Any, photos: Sequence[Example]) -> Recipe:
    """With class pictures. Zoom would draw other masks, and their means are over each process's own."""
    settings = CustomDiffusionSettings(steps=STEPS, zoom=Zoom.NONE, start=("person",), learning_rate=1e-3)
    others = [replace(photo, caption="a photo of a person") for photo in photos]
    return custom_diffusion(base, [photos], settings, 0, [others])


def _subject(base: Any, photos: Sequence[Example]) -> Recipe:
    """A table: a network's dropout is drawn by each process."""
    settings = SefiIdeSettings(steps=STEPS, tokens=Tokens.TABLE, lambda_attention=0.5, start="forest")
    return sefi_ide(base, photos, settings)


RECIPES: dict[str, Callable[[Any, Sequence[Example]], Recipe]] = {"custom_diffusion": _concept, "sefi_ide": _subject}
