"""The main job through the real server with real weights that find, recognise and judge the faces of real photos.

The committed graph `portrait_faceid` runs with the face analyses that come in packages. No published adapter reads
their embeddings, so the adapter is random, in FaceID's layout at their width, and so is the base model: portraits show
nobody. What is held is that the person decides over it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import comfyui
import numpy as np
import pytest
from helpers import server as server_module

WORKFLOW = comfyui.REPOSITORY / "workflows" / "api" / "portrait_faceid.api.json"
PHOTOS = comfyui.REPOSITORY / "build" / "photos"
OPTIONS = "LikenessIPAdapterOptions"
ADAPTER = "ip-adapter-faceid_sd15_128.bin"
FREE = {
    "works now (the best that is here)": ("dlib", "sface"),
    "OpenCV (YuNet + SFace)": ("sface", "dlib"),
}  # the recogniser, and the judge that is left
SIX = "six people"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("real_faces", "full_checkpoint")]


@pytest.fixture(scope="module")
def uploads(running_server, photos) -> dict[str, str]:
    """Photographs among the server's inputs, by what they show."""
    if not PHOTOS.is_dir():
        pytest.skip("no photographs in build/photos: `make setup` brings them")
    client = running_server.client
    names = {name: client.upload_image(f"real_{name.replace(' ', '_')}.png", photo) for name, photo in photos.items()}
    for name in ("obama", "obama2", "biden"):
        names[name] = client.upload_file(PHOTOS / f"{name}.jpg")
    return names


@pytest.fixture(scope="module")
def graph(running_server, models: Path, files, uploads):
    """`graph(photo, model)`: the committed graph on a photo, small and short, with a free face analysis."""
    files.write_adapter(models / "ipadapter" / ADAPTER, files.faceid_sd15(id_dim=128))
    committed = json.loads(WORKFLOW.read_text())
    declared = running_server.client.object_info(OPTIONS)[OPTIONS]["input"]["required"]
    defaults = {name: given[1].get("default", given[0][:1]) for name, given in declared.items()}

    def of(photo: str, model: str = "works now (the best that is here)", **kinds):
        made = copy.deepcopy(committed)
        inputs = {
            "LoadImage": {"image": uploads.get(photo, photo)},
            "LikenessLoadFaceAnalysis": {"model": model},
            "LikenessLoadIdentityAdapter": {"adapter_file": ADAPTER},
            "LikenessApplyIdentity": {"options": ["options", 0]},
            "EmptyLatentImage": {"width": 256, "height": 256},
            "KSampler": {"steps": 2},
        }
        for kind, changes in [*inputs.items(), *kinds.items()]:
            made[find(made, kind)]["inputs"].update(changes)
        made["options"] = {"class_type": OPTIONS, "inputs": {**defaults, "any_recogniser": True}}
        return made

    return of


@pytest.fixture
def portrait(client):
    """Run a graph and return its only portrait."""

    def run(prompt) -> np.ndarray:
        [picture] = client.images(client.run(prompt), find(prompt, "SaveImage"))
        return picture

    return run


def find(prompt, kind: str) -> str:
    """The id of the only node of this kind."""
    [number] = [number for number, node in prompt.items() if node["class_type"] == kind]
    return number


def with_report(prompt, number: str, pictures: str):
    """The graph with an Identity Report on another photograph, without a judge of its own."""
    prompt[f"photo {number}"] = {"class_type": "LoadImage", "inputs": {"image": pictures}}
    prompt[f"report {number}"] = {
        "class_type": "LikenessIdentityReport",
        "inputs": {
            "images": [f"photo {number}", 0],
            "identity": [find(prompt, "LikenessIdentityFromPhotos"), 0],
            "threshold": 60.0,
            "title": number,
            "save": False,
            "allow_same_recogniser": False,
        },
    }
    prompt[f"words {number}"] = {"class_type": "PreviewAny", "inputs": {"source": [f"report {number}", 1]}}
    return prompt


@pytest.mark.parametrize("model", FREE)
def test_a_real_photo_becomes_a_portrait_and_the_person_is_recognised_in_another_photo(
    server, graph, uploads, photos, model
):
    prompt = with_report(graph("obama", model), "same", uploads["obama2"])
    prompt = with_report(prompt, "stranger", uploads["biden"])
    run = server.client.run(prompt)
    assert not run.node_errors
    [portrait] = server.client.images(run, find(prompt, "SaveImage"))
    assert portrait.shape == (256, 256, 3) and portrait.std() > 5
    recogniser, judge = FREE[model]
    [shown] = run.outputs[find(prompt, "LikenessLoadFaceAnalysis")]["text"]
    assert "commercial use: allowed" in shown
    said = {number: run.outputs[f"report {number}"]["text"][0] for number in ("same", "stranger")}
    assert "1 of 1 images reach 60 %" in said["same"] and "0 of 1 images reach 60 %" in said["stranger"], said
    [words] = run.outputs["words same"]["text"]
    assert f"Judge: {judge}. Licence of the judge:" in words and recogniser != judge


def test_the_preview_marks_the_face_that_the_real_detector_found(client, graph, photos, known_faces):
    prompt = graph(SIX)
    del prompt[find(prompt, "SaveImage")]
    [preview] = client.images(client.run(prompt), find(prompt, "PreviewImage"))
    drawn = (preview != photos[SIX]).any(axis=-1)
    for face in known_faces[SIX]:  # as MTCNN sees them
        x1, y1, x2, y2 = (round(float(value)) for value in face.box)
        assert drawn[max(y1 - 12, 0) : y2 + 12, max(x1 - 12, 0) : x2 + 12].any()
    assert drawn.mean() < 0.2


def test_the_person_decides_over_the_portrait(portrait, graph):
    """Another photo of the same person changes it less than a photo of somebody else."""
    little = {"KSampler": {"steps": 1}, "LikenessApplyIdentity": {"weight": 1.0, "lora_strength": 0.0}}
    first, again, other = (portrait(graph(name, **little)).astype(int) for name in ("obama", "obama2", "biden"))
    same, strange = np.abs(first - again).mean(), np.abs(first - other).mean()
    assert 0 < same < 0.8 * strange


def test_a_real_photo_without_a_face_is_refused_in_one_sentence(client, graph, photos):
    suit = client.upload_image("suit.png", np.ascontiguousarray(photos["astronaut"][300:, :220]))
    with pytest.raises(server_module.RunFailed) as failed:
        client.run(graph(suit))
    assert failed.value.node_type == "LikenessFindFaces"
    assert "No face was found in the photo" in failed.value.message and "\n" not in failed.value.message


def test_a_published_adapter_says_which_recogniser_it_reads(client, graph):
    with pytest.raises(server_module.RunFailed) as failed:
        client.run(graph("obama", LikenessLoadIdentityAdapter={"adapter_file": "ip-adapter-faceid_sd15.bin"}))
    assert failed.value.node_type == "LikenessApplyIdentity"
    assert "reads embeddings of 512 numbers" in failed.value.message
    assert "make it with buffalo_l" in failed.value.message
