"""The main job through the real server: photo -> face -> identity -> adapter -> a portrait at SD1.5's full size.

The committed API file runs as it is; only the photo's name, the image's size and the steps are changed. The weights
are random, so an image shows nobody; what is held is that the right face decides over it, and nothing else does.
"""

from __future__ import annotations

import copy
import json

import comfyui
import numpy as np
import pytest
from helpers import server as server_module

WORKFLOW = comfyui.REPOSITORY / "workflows" / "api" / "portrait_faceid.api.json"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("full_checkpoint")]


def find(prompt, kind: str) -> str:
    """The id of the only node of this kind."""
    [number] = [number for number, node in prompt.items() if node["class_type"] == kind]
    return number


def changed(prompt, **kinds):
    """A copy with some inputs of the nodes of some kinds replaced."""
    prompt = copy.deepcopy(prompt)
    for kind, inputs in kinds.items():
        prompt[find(prompt, kind)]["inputs"].update(inputs)
    return prompt


@pytest.fixture(scope="module")
def uploads(running_server, photos):
    client = running_server.client
    return {name: client.upload_image(f"{name.replace(' ', '_')}.png", photo) for name, photo in photos.items()}


@pytest.fixture(scope="module")
def prompt(uploads):
    """The committed graph on the six people, small and short."""
    return changed(
        json.loads(WORKFLOW.read_text()),
        LoadImage={"image": uploads["six people"]},
        EmptyLatentImage={"width": 256, "height": 256},
        KSampler={"steps": 2},
    )


@pytest.fixture
def portrait(client):
    """Run a graph and return its only portrait."""

    def run(prompt) -> np.ndarray:
        [picture] = client.images(client.run(prompt), find(prompt, "SaveImage"))
        return picture

    return run


@pytest.fixture(scope="module")
def reference(running_server, prompt):
    """The unchanged graph's portrait and how its run went."""
    run = running_server.client.run(prompt)
    [picture] = running_server.client.images(run, find(prompt, "SaveImage"))
    return picture, run


def test_a_finished_portrait_comes_out(server, prompt, reference):
    picture, run = reference
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 5
    assert not run.node_errors
    assert (find(prompt, "KSampler"), 2, 2) in run.progress
    assert list((server.base / "output" / "likeness").glob("portrait_*.png"))


def test_the_preview_shows_every_face_and_marks_the_chosen_one(client, prompt, reference, photos, known_faces):
    [preview] = client.images(reference[1], find(prompt, "PreviewImage"))
    photo = photos["six people"]
    assert preview.shape == photo.shape
    drawn = (preview != photo).any(axis=-1)
    for face in known_faces["six people"]:
        x1, y1, x2, y2 = (round(float(value)) for value in face.box)
        assert drawn[max(y1 - 4, 0) : y2 + 5, max(x1 - 4, 0) : x2 + 5].any()
    assert drawn.mean() < 0.2


@pytest.mark.parametrize(("inputs", "rank"), [({}, 0), ({"index": 1}, 1), ({"choice": "left to right"}, None)])
def test_the_identity_is_the_face_that_was_chosen(server, models, prompt, known_faces, inputs, rank):
    from likeness.faces import Identity, load_pack

    graph = changed(prompt, LikenessFindFaces=inputs)
    del graph[find(graph, "SaveImage")]
    graph["save"] = {
        "class_type": "LikenessSaveIdentity",
        "inputs": {"identity": [find(graph, "LikenessIdentityFromPhotos"), 0], "filename": f"chosen_{rank}"},
    }
    server.client.run(graph)
    [path] = server.base.rglob(f"chosen_{rank}*.safetensors")
    got = Identity.load(path).mean_embedding().numpy()
    recogniser = load_pack(models / "insightface" / "models" / "buffalo_l").recogniser
    assert recogniser is not None
    faces = known_faces["six people"]
    meant = faces[rank] if rank is not None else min(faces, key=lambda face: face.box[0])
    cosines = []
    for face in faces:
        embedding = recogniser.embed(face.photo, face.keypoints)
        cosines.append(float(embedding @ got / np.linalg.norm(embedding) / np.linalg.norm(got)))
    best = int(np.argmax(cosines))
    assert faces[best] is meant
    assert cosines[best] > 0.999 > max(cosines[:best] + cosines[best + 1 :])


def test_another_face_of_the_photo_changes_the_portrait(portrait, prompt, reference):
    other = portrait(changed(prompt, LikenessFindFaces={"index": 1}))
    assert np.abs(other.astype(int) - reference[0]).mean() > 1


def test_another_photo_changes_the_portrait(portrait, prompt, reference, uploads):
    other = portrait(changed(prompt, LoadImage={"image": uploads["astronaut"]}))
    assert np.abs(other.astype(int) - reference[0]).mean() > 1


def test_the_same_graph_gives_the_same_portrait_again(client, portrait, prompt, reference):
    client.post("/free", {"unload_models": True, "free_memory": True})
    assert np.array_equal(portrait(prompt), reference[0])


def test_strength_0_is_bit_identical_to_no_adapter(portrait, prompt, reference):
    silent = portrait(changed(prompt, LikenessApplyIdentity={"weight": 0.0}))
    checkpoint = [find(prompt, "CheckpointLoaderSimple"), 0]
    without = portrait(changed(prompt, KSampler={"model": checkpoint}))
    assert np.array_equal(silent, without)
    assert not np.array_equal(silent, reference[0])


def test_a_photo_without_a_face_is_refused_in_one_sentence(client, prompt, photos):
    name = client.upload_image("landscape.png", np.ascontiguousarray(photos["astronaut"][:, ::-1]))
    with pytest.raises(server_module.RunFailed) as failed:
        client.run(changed(prompt, LoadImage={"image": name}))
    assert failed.value.node_type == "LikenessFindFaces"
    assert failed.value.exception_type.endswith("LikenessError")
    assert "No face was found in the photo" in failed.value.message
    assert "\n" not in failed.value.message


def test_a_missing_adapter_file_is_named_with_its_folder(client, prompt):
    run = client.run(changed(prompt, LikenessLoadIdentityAdapter={"adapter_file": "absent.bin"}))
    [loader] = [number for number, node in prompt.items() if node["class_type"] == "LikenessLoadIdentityAdapter"]
    [said] = run.left_out[loader]  # found before anything ran; the outputs without it are made
    assert "'absent.bin' was not found" in said and "models/ipadapter" in said
    assert run.outputs and loader not in run.executed
