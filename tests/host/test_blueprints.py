"""The subgraph blueprints in a real server: it lists them, and what is inside runs on the miniature."""

from __future__ import annotations

import json
import urllib.error

import comfyui
import numpy as np
import pytest
from PIL import Image

from likeness.miniature.comfyui_server import PACK_FOLDER

WORKFLOWS, SUBGRAPHS = comfyui.REPOSITORY / "workflows", comfyui.REPOSITORY / "subgraphs"
FILES = {path.stem: path for path in SUBGRAPHS.glob("*.json")}
MINIATURE = {"face_analysis": "miniature", "adapter_file": "miniature FaceID (in this pack)"}
SMALL = {"negative_text": "", "width": 128, "height": 128, "steps": 4, "cfg": 4.0}
PICTURES = ("miniature_person.png", "miniature_person_1.png", "miniature_person_2.png", "miniature_style_1.png")


@pytest.fixture(scope="module")
def tool(running_server):
    """The module `workflows/_blueprint.py`; the images of the miniature are uploaded."""
    for name in PICTURES:
        with Image.open(WORKFLOWS / name) as picture:
            running_server.client.upload_image(name, np.asarray(picture.convert("RGB")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WORKFLOWS)
        return comfyui.load_module("_blueprint", WORKFLOWS / "_blueprint.py")


@pytest.fixture
def paint(client, tool):
    """Run a blueprint with these values outside of it; its images by the name of the output."""

    def run(name: str, /, *outputs: str, **given) -> dict[str, list[np.ndarray]]:
        blueprint = json.loads(FILES[name].read_text(encoding="utf-8"))
        prompt = {"w": {"class_type": "LikenessLoadMiniature", "inputs": {}}}
        for number, picture in enumerate(PICTURES):
            prompt[f"p{number}"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
        links = {"model": ["w", 0], "clip": ["w", 1], "vae": ["w", 2]}
        outer = {slot["name"] for slot in blueprint["nodes"][0]["inputs"]}
        assert set(given) <= outer
        wanted = {name: value for name, value in {**links, **MINIATURE, **SMALL, **given}.items() if name in outer}
        prompt |= tool.flattened(blueprint, client.object_info(), wanted, "7")
        for place, output in enumerate(outputs):
            link = tool.output_of(blueprint, output, "7")
            prompt[f"s{place}"] = {"class_type": "PreviewImage", "inputs": {"images": link}}
        run = client.run(prompt)
        assert not run.node_errors
        return {output: client.images(run, f"s{place}") for place, output in enumerate(outputs)}

    return run


def test_hosts_that_know_blueprints_list_ours(client, host_path):
    if not host_path.joinpath("app", "subgraph_manager.py").is_file():
        with pytest.raises(urllib.error.HTTPError):
            client.get("/global_subgraphs")
        return
    listed = client.get_json("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in listed.items() if PACK_FOLDER in entry["info"]["node_pack"]}
    assert set(ours) == set(FILES)
    for name, key in ours.items():
        assert json.loads(client.get_json(f"/global_subgraphs/{key}")["data"]) == json.loads(FILES[name].read_text())


def test_a_portrait_of_a_person_shows_the_person(paint):
    name, photos = "Portrait of a Person (Likeness)", {"photos": ["p0", 0]}
    shown = paint(name, "portrait", "faces found", **photos, text="a photo of a person")
    [portrait], [found] = shown["portrait"], shown["faces found"]
    assert portrait.shape == (128, 128, 3) and portrait.std() > 5 and found.std() > 5
    [again] = paint(name, "portrait", **photos, text="a photo of a person")["portrait"]
    assert np.array_equal(portrait, again)
    for change in ({"photos": ["p1", 0]}, {"weight": 0.0}, {"text": "a photo of a person in the snow"}, {"seed": 2}):
        [other] = paint(name, "portrait", **{**photos, "text": "a photo of a person", **change})["portrait"]
        assert not np.array_equal(portrait, other), change


def test_each_of_two_people_decides_over_the_picture(paint):
    name, text = "Two People (Likeness)", "a photo of a man and a woman"
    people = {"photos left": ["p0", 0], "photos right": ["p1", 0]}
    [picture] = paint(name, "picture", **people, text=text)["picture"]
    assert picture.shape == (128, 128, 3) and picture.std() > 5
    for side, half in (("left", np.s_[:, :64]), ("right", np.s_[:, 64:])):
        [other] = paint(name, "picture", **{**people, f"photos {side}": ["p2", 0]}, text=text)["picture"]
        change = np.abs(picture.astype(int) - other)
        assert change.any() and change[half].mean() >= change.mean()


def test_train_and_paint_trains_and_paints(paint):
    asked = {"trigger_word": "sks", "class_word": "person", "resolution": 128, "training_steps": 2, "name": "blueprint"}
    asked |= {"learning_rate": 5e-4, "class_pictures": 1, "text": "a photo of a sks person"}
    shown = paint("Train and Paint (Likeness)", "portrait", "photos used", "losses", photos=["p1", 0], **asked)
    [portrait] = shown["portrait"]
    assert portrait.shape == (128, 128, 3) and portrait.std() > 5
    assert all(pictures[0].std() > 3 for pictures in shown.values())
