"""The demonstration: what it writes, and the sentence for everything that can be wrong with a folder of photos."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces.sheet import sample_photos
from likeness.miniature import demo, demo_comfyui
from likeness.miniature.models.world import load_world, photos_of


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:2])
    monkeypatch.setattr(demo, "_OTHERS", range(6000, 6003))


def test_it_writes_a_sheet_a_report_the_pictures_and_the_identity(tmp_path, short, capsys):
    records = demo.run_demo(None, tmp_path, person=1, seed=3, comfyui=False)
    assert {record.method for record in records} == {"without", "FaceID"}
    assert {"sheet.png", "report.md", "records.csv", "person-5001.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert len(list((tmp_path / "FaceID").glob("*.png"))) == len(list((tmp_path / "without").glob("*.png"))) == 2
    assert "sheet.png" in capsys.readouterr().out

    again = demo.run_demo(None, tmp_path, person=1, seed=3, comfyui=False)
    assert [record.measures["id"] for record in again] == [record.measures["id"] for record in records]
    assert (tmp_path / "person-5001_2.safetensors").exists()


def test_photos_of_a_folder_are_the_person(tmp_path, world):
    for number, photo in enumerate(photos_of(9_005_002, 3)):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    subject = demo.subject_of(world, tmp_path)
    assert len(subject.identity) >= 2
    assert subject.name == tmp_path.name


def test_a_folder_without_pictures_is_named(tmp_path, world):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(LikenessError, match="holds no images"):
        demo.subject_of(world, tmp_path)
    with pytest.raises(LikenessError, match="is not a folder"):
        demo.subject_of(world, tmp_path / "nowhere")


def test_a_person_that_does_not_exist_is_refused(world):
    with pytest.raises(LikenessError, match="from 0 to 999"):
        demo.somebody(world, 1000)


def test_a_photo_from_outside_the_world_is_said_to_be_one(tmp_path, world):
    Image.fromarray(sample_photos()[0]).save(tmp_path / "people.jpg")
    with pytest.raises(LikenessError, match="miniature world"):
        _ = demo.subject_of(world, tmp_path).identity


def test_a_photo_that_is_no_picture_is_named(tmp_path, world):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(LikenessError, match=r"broken\.png"):
        demo.subject_of(world, tmp_path)


def test_the_shipped_graph_is_filled_with_all_photos_the_prompt_and_the_seed():
    template = json.loads(demo_comfyui.WORKFLOW.read_text(encoding="utf-8"))
    graph = demo_comfyui.filled_graph(template, ["a.png", "b.png", "c.png"], "a photo of a person", 7, 0.0)
    kinds = [node["class_type"] for node in graph.values()]
    assert kinds.count("LoadImage") == 3
    assert kinds.count("ImageBatch") == 2
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")["inputs"]
    assert sampler["seed"] == 7
    assert graph[sampler["positive"][0]]["inputs"]["text"] == "a photo of a person"
    applied = next(node for node in graph.values() if node["class_type"] == "LikenessApplyIdentity")["inputs"]
    assert applied["weight"] == applied["lora_strength"] == 0.0
    assert template != graph


def test_photos_of_a_person_differ_and_are_repeated_exactly():
    first, second = photos_of(9_000_001, 2), photos_of(9_000_001, 2)
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("seed", [-1, 10**20])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, seed):
    with pytest.raises(LikenessError, match="--seed is"):
        demo.run_demo(None, tmp_path / "out", person=0, seed=seed, comfyui=False)
    assert not (tmp_path / "out").exists()
