"""`likeness train`: from a configuration file and a folder of photos to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.errors import LikenessError
from likeness.training import command
from likeness.training.command import Openers, read_configuration, run
from likeness.training.dataset import DatasetKind, Settings, build_dataset
from likeness.training.dataset_folder import save_dataset
from likeness.training.embedding_files import load_embedding
from likeness.training.photo_files import read_folder

CONFIGURATION = """
name = "anna"
base = "small"
output = "{folder}/run"
[data]
person = "{folder}/photos"
resolution = 64
[recipe]
kind = "{kind}"
{recipe}
[run]
save_every = 1
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two photos with masks beside them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(random.integers(0, 255, (192, 192, 3), np.uint8)).save(photos / f"{name}.png")
        mask = np.zeros((192, 192), np.uint8)
        mask[40:150, 50:140] = 255
        Image.fromarray(mask).save(photos / f"{name}.mask.png")
    return tmp_path


def configuration(folder: Path, kind: str, recipe: str) -> Path:
    file = folder / "config.toml"
    file.write_text(CONFIGURATION.format(folder=folder.as_posix(), kind=kind, recipe=recipe))
    return file


def openers(make_base: Any) -> Openers:
    return Openers(lambda name: make_base(), lambda name: None)  # type: ignore[arg-type, return-value]


def test_a_word_is_learned_from_a_folder_and_results_are_never_overwritten(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1')
    (first,) = run(read_configuration(file), openers(make_base))
    whole = first.read_bytes()
    assert run(read_configuration(file), openers(make_base)) == [first], "it is there already"
    first.write_bytes(b"precious")
    (second,) = run(read_configuration(file), openers(make_base))
    assert first.name == "anna.safetensors" and first.read_bytes() == b"precious"
    assert second.name == "anna_2.safetensors" and len(second.read_bytes()) == len(whole)
    assert (folder / "run" / "losses.csv").exists()


def said(monkeypatch, kind: str) -> list[str]:
    """What the photos are called once the recipe is made; nothing is trained."""
    captions: list[str] = []

    def recipe(base, photos, *_):
        captions.extend(photo.caption for photo in photos)
        raise LikenessError("enough")

    monkeypatch.setattr(command, kind, recipe)
    return captions


@pytest.mark.parametrize(
    ("kind", "recipe", "template"),
    [
        ("textual_inversion", 'token = "ohwx"', "a portrait of a ohwx person"),
        ("textual_inversion", 'token = "ohwx"\ntemplates = ["one {}"]', "one ohwx"),
        ("dreambooth", 'prior_weight = 0\nprompt = "here is {}"', "here is ohwx"),
    ],
)
def test_captions_beside_the_photos_are_used_as_in_the_graph(
    make_base, folder, monkeypatch, capsys, kind, recipe, template
):
    (folder / "photos" / "one.txt").write_text("{} in the rain")
    (folder / "photos" / "three.caption").write_text("nobody")
    captions = said(monkeypatch, kind)
    with pytest.raises(LikenessError, match="enough"):
        run(read_configuration(configuration(folder, kind, recipe)), openers(make_base))
    assert captions == ["ohwx in the rain", template]
    assert "three.caption: not used, because no picture has this name" in capsys.readouterr().out


def test_captions_that_are_not_wanted_are_not_read_and_that_is_said(make_base, folder, monkeypatch, capsys):
    (folder / "photos" / "one.txt").write_text("without the word")
    captions = said(monkeypatch, "dreambooth")
    with pytest.raises(LikenessError, match="enough"):
        run(
            read_configuration(configuration(folder, "dreambooth", "prior_weight = 0\ncaptions = false")),
            openers(make_base),
        )
    assert len(captions) == 2 and "without the word" not in captions
    assert "one.txt: this training does not read captions" in capsys.readouterr().out


def test_a_dataset_of_another_trigger_word_is_renamed(make_base, folder, monkeypatch, capsys):
    made = build_dataset(read_folder(folder / "photos").photos, Settings(DatasetKind.PERSON, "ohwx", resolution=64))
    place = save_dataset(made, folder / "saved")
    (place / "001_one.txt").write_text("OHWX in the rain")
    captions = said(monkeypatch, "textual_inversion")
    file = configuration(folder, "textual_inversion", 'token = "<anna>"')
    file.write_text(file.read_text().replace("/photos", "/saved"))
    with pytest.raises(LikenessError, match="enough"):
        run(read_configuration(file), openers(make_base))
    assert captions == ["<anna> in the rain", "a portrait of a <anna> person"]


def test_dreambooth_makes_its_class_pictures_in_the_run_folder(make_base, folder):
    (result,) = run(
        read_configuration(configuration(folder, "dreambooth", "steps = 1\nclass_pictures = 1")), openers(make_base)
    )
    assert result.exists() and len(list((folder / "run" / "class").iterdir())) == 1


@pytest.mark.parametrize(
    ("kind", "recipe", "words"),
    [
        ("textual_inversion", "", "recipe.textual_inversion.token"),
        ("textual_inversion", 'token = "<a>"\nlearning_rate = -1', "learning_rate"),
        ("textual_inversion", 'token = "<a>"\nstepps = 1', "stepps"),
        ("hypernetwork", "", "recipe"),
        ("dreambooth", "steps =", "TOML"),
    ],
)
def test_a_wrong_entry_is_named(folder, kind, recipe, words):
    with pytest.raises(LikenessError, match=words):
        read_configuration(configuration(folder, kind, recipe))


def test_a_run_goes_on_with_its_own_photos_only(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1')
    run(read_configuration(file), openers(make_base))
    mask = np.zeros((192, 192), np.uint8)
    mask[60:120, 50:140] = 255
    Image.fromarray(mask).save(folder / "photos" / "two.mask.png")
    with pytest.raises(LikenessError, match="other photos, masks or captions"):
        run(read_configuration(file), openers(make_base))


def test_a_word_goes_on_from_the_file_of_an_earlier_training(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1\nlearning_rate = 0.1')
    (first,) = run(read_configuration(file), openers(make_base))
    settled = load_embedding(first).vectors["clip_l"]
    again = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1\nlearning_rate = 1e-9')
    text = (
        again.read_text()
        .replace("/run", "/more")
        .replace("resolution = 64", f'resolution = 64\nperson_word = "{first.as_posix()}"')
    )
    again.write_text(text)
    (second,) = run(read_configuration(again), openers(make_base))
    torch.testing.assert_close(load_embedding(second).vectors["clip_l"], settled, atol=1e-6, rtol=0)
    again.write_text(text.replace('kind = "textual_inversion"\ntoken = "<anna>"', 'kind = "dreambooth"'))
    with pytest.raises(LikenessError, match=r"remove data\.person_word"):
        run(read_configuration(again), openers(make_base))


def test_magicapture_asks_for_a_style(make_base, folder):
    chosen = read_configuration(configuration(folder, "magicapture", ""))
    with pytest.raises(LikenessError, match=r"data\.style"):
        run(chosen, openers(make_base))
