"""Numbers that no training could use are refused before it begins, by every setting that is a number."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from likeness.training.command import DataSettings
from likeness.training.config import LoraSettings, MethodSettings, RunSettings, Settings
from likeness.training.recipes.dreambooth import DreamBoothSettings
from likeness.training.recipes.magicapture import MagiCaptureSettings
from likeness.training.recipes.textual_inversion import TextualInversionSettings

GIVEN: dict[type[Settings], dict[str, Any]] = {
    LoraSettings: {},
    RunSettings: {},
    DreamBoothSettings: {},
    TextualInversionSettings: {"token": "<me>"},
    MagiCaptureSettings: {},
    DataSettings: {"person": "photos"},
}
BAD = (float("nan"), float("inf"), float("-inf"), -1, -(10**18), 10**19, 1e38)
NUMBERS = [
    (kind, name)
    for kind in GIVEN
    for name, field in kind.model_fields.items()
    if any(number in str(field.annotation) for number in ("int", "float"))
]


def test_there_are_such_settings():
    assert len(NUMBERS) > 40


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_number_has_bounds(kind, name):
    for value in BAD:
        with pytest.raises(ValidationError):
            kind(**{**GIVEN[kind], name: value})


@pytest.mark.parametrize("kind", GIVEN)
def test_settings_that_decide_nothing_are_told_apart_from_the_others(kind):
    settings = kind(**GIVEN[kind])
    if not issubclass(kind, MethodSettings):
        return
    assert settings.idle <= set(kind.model_fields)
    assert list(settings.steps_of_phases) == [name for name in kind.model_fields if name.endswith("steps")]
