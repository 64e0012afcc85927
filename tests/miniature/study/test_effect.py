"""What the shipped weights do, on people nobody was trained on: a small fixed set, with wide margins."""

from __future__ import annotations

import pytest
import torch

from likeness.evaluation.identity import see
from likeness.miniature.models.world import load_world, wanted
from likeness.miniature.study.measuring import PROMPTS, measure_subject, subjects

PEOPLE = range(7000, 7006)


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def study(world):
    """Everybody without and with the adapter, from the same noise: method -> records, and the images."""
    everybody = subjects(world, PEOPLE)
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[6]]
    records = {"without": [], "with": []}
    for row, subject in enumerate(everybody):
        seeds = range(100 * row, 100 * row + len(prompts))
        others = [other for other in everybody if other is not subject]
        embedding = subject.identity.mean_embedding()[None]
        for method, condition in (("without", None), ("with", embedding)):
            pictures = world.portraits(prompts, seeds, condition)
            records[method] += measure_subject(world, method, subject, pictures, prompts, seeds, others)
    return records


def mean(records, measure_name):
    return sum(record.measures[measure_name] for record in records) / len(records)


def test_the_adapter_brings_the_pictures_nearer_to_the_person(study):
    assert mean(study["with"], "id") > mean(study["without"], "id") + 0.25


def test_the_right_person_is_nearer_than_the_others(study):
    assert mean(study["with"], "margin") > 0.25
    assert abs(mean(study["without"], "margin")) < 0.1


def test_the_recogniser_that_conditions_sees_it_too(study):
    assert mean(study["with"], "id_conditioner") > mean(study["without"], "id_conditioner") + 0.2


def test_prompts_are_obeyed_with_the_adapter_nearly_as_without(study):
    without, with_adapter = mean(study["without"], "attributes"), mean(study["with"], "attributes")
    assert without > 0.85
    assert with_adapter > without - 0.1


def test_faces_show_the_expression_that_is_asked_for(world):
    prompts = [PROMPTS[4], PROMPTS[5]] * len(PEOPLE)
    seen = world.read(world.portraits(prompts, range(len(prompts))))
    right = [answer["expression"] == wanted(prompt)["expression"] for answer, prompt in zip(seen, prompts, strict=True)]
    assert sum(right) / len(right) > 0.7


def test_strength_zero_is_the_base_model(world):
    prompts, seeds = [PROMPTS[0]], [5]
    embedding = torch.randn(1, 512)
    assert torch.equal(world.portraits(prompts, seeds, embedding, 0.0), world.portraits(prompts, seeds))


def test_two_photos_of_one_person_are_alike_and_of_two_people_are_not(world):
    everybody = subjects(world, PEOPLE)
    own = [float(subject.judged.mean @ subject.judged_given.mean) for subject in everybody]
    strange = [float(a.judged.mean @ b.judged_given.mean) for a in everybody for b in everybody if a is not b]
    assert sum(own) / len(own) > 0.5
    assert sum(strange) / len(strange) < 0.25


def test_faces_are_found_in_drawn_photos_and_answers_are_right(world):
    photos = torch.stack([torch.from_numpy(photo).float() / 255 for s in subjects(world, PEOPLE) for photo in s.given])
    assert float(see(photos, world.judge).found.float().mean()) > 0.95
    assert all(answer["style"] == wanted("a photo of a person")["style"] for answer in world.read(photos))
