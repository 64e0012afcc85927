"""Trained methods on drawn people: their images are read as the method reads prompts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from likeness.miniature.models.world import load_world
from likeness.miniature.study.measuring import TUNING_PEOPLE, subjects
from likeness.miniature.study.tuned import SUBJECT, attention_outside, learn, lesson_of, phrase_of, portraits_of
from likeness.training.data.dataset import DatasetKind
from likeness.training.methods.custom_diffusion import METHOD as CUSTOM_DIFFUSION
from likeness.training.methods.sefi_ide import METHOD as SEFI_IDE


def test_prompts_say_the_class_word_where_the_method_wants_it():
    assert phrase_of(SEFI_IDE) == SUBJECT and phrase_of(CUSTOM_DIFFUSION) == f"{SUBJECT} person"


@pytest.mark.slow
def test_a_method_of_stages_is_read_by_them():
    world = load_world()
    [person] = subjects(world, TUNING_PEOPLE[:1])
    tuned = learn(lesson_of(SEFI_IDE, world, person.given, 5, learning_rate=0.5), world, phrase_of(SEFI_IDE))
    said, seeds = ["a photo of a person in the forest", "a photo of a smiling person"], [1, 2]
    drawn = tuned.portraits(said, seeds)
    assert torch.equal(tuned.portraits(said, seeds, named=False), world.portraits(said, seeds))
    assert not torch.allclose(drawn, world.portraits(said, seeds), atol=0.05)
    # One entry of the tokenizer is one token; only the recipe knows those of the other stages and of the values.
    assert not torch.allclose(drawn, replace(tuned, reading=nullcontext).portraits(said, seeds), atol=0.01)
    shown = portraits_of(world, person.held_out[:1], DatasetKind.PERSON, SUBJECT)
    assert 0 < attention_outside(tuned, shown, (400,)) < 1
    assert tuned.base.staged is None
