"""`likeness train` of an adapter: from a folder of faces to a file that the pack's own loader opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.people import ANALYSIS, GREEN, NOBODY, RED, put, toy_clip_file
from helpers.pulid import companions

from likeness import adapters
from likeness.errors import LikenessError
from likeness.training.command import Openers, read_configuration, run

CONFIGURATION = """
name = "faces"
base = "small"
output = "{folder}/run"
[data]
people = "{folder}/people"
resolution = 64
{data}
[recipe]
kind = "{kind}"
steps = 1
{recipe}
[run]
{run}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(2):
        put(tmp_path / "people" / "anna" / f"{number}.png", RED, "a woman")
        put(tmp_path / "people" / "ben" / f"{number}.png", GREEN)
    return tmp_path


def configuration(folder: Path, kind: str = "ip_adapter", recipe: str = "rank = 2", **parts: str) -> Any:
    file = folder / "config.toml"
    values = {"data": "", "run": "", **parts}
    file.write_text(CONFIGURATION.format(folder=folder.as_posix(), kind=kind, recipe=recipe, **values))
    return read_configuration(file)


@pytest.fixture
def openers(make_base) -> Openers:
    return Openers(lambda name: make_base(), lambda name: ANALYSIS)


def test_a_folder_of_faces_becomes_an_adapter_that_is_trained_further(folder, openers, capsys):
    put(folder / "people" / "ben" / "empty.png", NOBODY)
    asked = configuration(folder)
    (file,) = run(asked, openers)
    said = capsys.readouterr().out
    assert "4 images of 2 people" in said and "left out: ben/empty.png" in said
    adapter = adapters.load(file)
    assert adapter.title == "IP-Adapter FaceID" and adapter.name == "faces.safetensors"
    assert run(asked, openers) == [file], "it is there already"
    start = file.rename(folder / "start.safetensors")
    more = configuration(folder, data=f'start_from = "{start.as_posix()}"')
    with pytest.raises(LikenessError, match="other files to start from"):
        run(more, openers)
    (further,) = run(more.model_copy(update={"output": folder / "further"}), openers)
    assert adapters.load(further).title == adapter.title


def test_a_pulid_reads_faces_through_its_files(folder, openers):
    encoder, parser = companions(folder / "models")
    data = f'eva = "{encoder.as_posix()}"\nparser = "{parser.as_posix()}"'
    asked = configuration(folder, kind="pulid", recipe="width = 64", data=data)
    (file,) = run(asked, openers)
    assert adapters.load(file).title == "PuLID v1.1"
    with pytest.raises(LikenessError, match=r"data\.few_step"):
        more = f'{data}\nstart_from = "{file.rename(folder / "start.safetensors").as_posix()}"'
        recipe = "width = 64\nstage = 2\nlambda_id = 0.0"
        later = configuration(folder, kind="pulid", recipe=recipe, data=more)
        run(later.model_copy(update={"recipe": later.recipe.model_copy(update={"stage": 3})}), openers)


def test_a_photomaker_is_made_around_an_image_encoder(folder, openers):
    clip = toy_clip_file(folder / "clip.safetensors")
    recipe = "rank = 2\nsmallest_face = 60"
    data = f'encoder = "{clip.as_posix()}"'
    (file,) = run(configuration(folder, kind="photomaker", recipe=recipe, data=data), openers)
    assert adapters.load(file).title == "PhotoMaker v1"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"recipe": 'layout = "base"'}, r"data\.encoder"),
        ({"run": "preview_every = 1"}, "preview_every"),
        ({"data": 'start_from = "nowhere.safetensors"'}, r"no file 'nowhere\.safetensors'.*data\.start_from"),
        ({"kind": "instantid", "recipe": ""}, "antelopev2"),
        ({"kind": "storymaker", "recipe": ""}, r"data\.encoder"),
        ({"kind": "pulid", "recipe": ""}, r"data\.eva"),
        ({"kind": "pulid", "recipe": 'id_backprop = "first:1"'}, "id_backprop"),
        ({"kind": "textual_inversion", "recipe": 'token = "<a>"'}, r"no folder of people: write data\.person"),
    ],
)
def test_what_is_missing_or_wrong_is_named(folder, openers, parts, words):
    with pytest.raises(LikenessError, match=words):
        run(configuration(folder, **parts), openers)


def test_without_a_folder_of_people_it_is_asked_for(folder, openers):
    asked = configuration(folder)
    data = asked.data.model_copy(update={"people": None, "person": folder})
    with pytest.raises(LikenessError, match=r"data\.people"):
        run(asked.model_copy(update={"data": data}), openers)
