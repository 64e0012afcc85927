"""A concept of Custom Diffusion and a subject of SeFi-IDE, each by its own nodes."""

from __future__ import annotations

from typing import Any

from ..concepts import concept
from ..subjects import subject
from . import Case

PROMPT, PLAIN = "a photo of <ann> in the rain", "a photo of person in the rain"


def apply_concept(world: Any, seed: int, strength: float, model: Any) -> tuple[Any, Any, str]:
    learned = concept(model, seed=seed)
    given = {"model": model, "clip": world.text_clip, "concept": learned, "strength": strength}
    applied, _, report = world.run("LikenessApplyConcept", every=True, **given)
    return applied, None, report


def subject_prompt(world: Any, seed: int, strength: float, model: Any) -> tuple[Any, Any, str]:
    given = {"model": model, "clip": world.text_clip, "subject": subject(seed=seed), "strength": strength}
    positive, applied, report = world.run("LikenessSubjectPrompt", every=True, text=PROMPT, **given)
    return applied, positive, report


CASES = (
    Case("Custom Diffusion", use=apply_concept),
    Case("SeFi-IDE", prompt=PROMPT, plain=PLAIN, use=subject_prompt),
)
