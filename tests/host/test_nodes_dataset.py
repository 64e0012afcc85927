"""Portrait Dataset in the real host: its folders, its errors, and a dataset that is edited and read back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis, load_pack
from likeness.faces.detection import Detection
from likeness.training.data.dataset import Dataset, DatasetKind

NODE = "LikenessPortraitDataset"
INPUTS = [  # in the order of saved workflows, which must never change; new ones go to the end
    *(
        "kind",
        "trigger_word",
        "class_word",
        "resolution",
        "framing",
        "unfit",
        "masks",
        "folder",
        "save_as",
        "templates",
    ),
    *("smallest_face", "least_sharpness", "outlier_threshold", "image", "face_analysis", "identity", "second_judge"),
    *("image_2", "image_3", "image_4"),
]
REQUIRED = {"kind": "person", "trigger_word": "ohwx", "resolution": 128}


@pytest.fixture(scope="module")
def node(host_nodes):
    from likeness.nodes import dataset

    return dataset.PortraitDataset


@pytest.fixture
def places(host_nodes, tmp_path, monkeypatch):
    """The host with empty input, output and models folders."""
    import folder_paths

    from likeness import models_download

    for name in ("input", "output", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    for kind in models_download.OUR_KINDS:
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    models_download.register_folders()
    return tmp_path


@pytest.fixture(scope="module")
def analysis(files, known_faces, tmp_path_factory):
    """A face pack that knows the two photographs by heart."""
    folder = tmp_path_factory.mktemp("packs") / "buffalo_l"
    files.write_detector(folder / "det_10g.onnx", [face for faces in known_faces.values() for face in faces])
    files.write_recogniser(folder / "w600k_r50.onnx")
    return load_pack(folder)


@dataclass(frozen=True)
class Sees:
    """Takes everybody for one person."""

    name: str

    def embed(self, image_rgb, keypoints):
        return np.array([1.0, 2.0, 3.0], np.float32)


class Middle:
    """Finds one face in the middle of every image that is not black there."""

    name, threshold, sizes = "middle", 0.5, (64,)

    def detect(self, image_bgr, size=None):
        height, width = image_bgr.shape[:2]
        if image_bgr[height // 2, width // 2].max() == 0:
            return []
        box = np.array([width * 0.2, height * 0.2, width * 0.8, height * 0.8], np.float32)
        five = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)], np.float32)
        return [Detection(box, 0.9, box[:2] + five * (box[2:] - box[:2]))]


MIDDLE = FaceAnalysis("middle", Middle())


def noise(seed=0, height=160, width=130):
    coarse = np.random.default_rng(seed).integers(30, 255, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return np.kron(coarse, np.ones((10, 10, 1), np.uint8))[:height, :width]


def batch(*pictures):
    return torch.from_numpy(np.stack(pictures)).float() / 255


def fill(folder: Path, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(noise(number, 150 + 20 * number, 200)).save(folder / f"{number}.png")
    return folder


def run(node, **inputs):
    """dataset, preview, report"""
    return node.execute(**{**REQUIRED, **inputs}).result


# --- its schema


def test_inputs_keep_the_order_of_saved_workflows(node):
    assert [widget.id for widget in node.GET_SCHEMA().inputs] == INPUTS
    assert [output.get_io_type() for output in node.GET_SCHEMA().outputs] == ["LIKENESS_DATASET", "IMAGE", "STRING"]


def test_parsers_on_disk_can_be_chosen_and_missing_ones_say_where_they_belong(node, places):
    def options():
        return next(widget.options for widget in node.define_schema().inputs if widget.id == "masks")

    assert options() == ["ellipse"]
    weights = places / "models" / "facexlib" / "parsing_bisenet.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert options() == ["ellipse", "parsing_bisenet.pth"]
    with pytest.raises(LikenessError, match=r"parsing_parsenet\.pth.*facexlib"):
        run(node, image=batch(noise()), face_analysis=MIDDLE, masks="parsing_parsenet.pth")


# --- photos in, dataset out


def test_real_photographs_become_a_dataset_with_a_preview_and_a_report(node, places, analysis, photos):
    folder = places / "input" / "photos"
    folder.mkdir()
    for name, picture in photos.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    Image.fromarray(np.flipud(photos["astronaut"]).copy()).save(folder / "upside down.png")
    dataset, preview, report = run(node, folder="photos", face_analysis=analysis, resolution=256, outlier_threshold=-1)
    assert isinstance(dataset, Dataset) and dataset.kind is DatasetKind.PERSON
    assert [sample.name for sample in dataset.pictures] == ["astronaut.png", "six people.png"]
    dataset.require_masks()
    for sample, example in zip(dataset.pictures, dataset.examples(), strict=True):
        assert example.size == (256, 256) and "ohwx person" in example.caption
        assert sample.keypoints is not None
    assert preview.ndim == 4 and preview.shape[0] == 1 and float(preview.min()) >= 0 and float(preview.max()) <= 1
    assert "upside down.png: left out, because no face was found in it" in report


def test_a_batch_of_any_channels_and_a_folder_of_mixed_sizes_and_modes_go_together(node, places):
    folder = fill(places / "input" / "mixed", 2)
    Image.fromarray(noise(5)).convert("L").save(folder / "grey.jpg")
    Image.fromarray(noise(6, 90, 120)[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    transparent = np.dstack([noise(7, 300, 100), np.full((300, 100), 255, np.uint8)])
    transparent[:40, :, 3] = 0
    Image.fromarray(transparent).save(folder / "alpha.png")
    Image.fromarray(noise(8)).convert("P").save(folder / "palette.png")
    dataset, _, report = run(
        node, folder="mixed", image=batch(noise(9), noise(10)), face_analysis=MIDDLE, smallest_face=40
    )
    assert {sample.name for sample in dataset.pictures} == {
        *("image 1", "image 2", "0.png", "1.png", "grey.jpg", "sixteen.png", "alpha.png", "palette.png")
    }
    assert {sample.pixels.shape for sample in dataset.pictures} == {(128, 128, 3)}
    assert "alpha.png: used; its transparent parts were put on grey" in report
    for channels in (1, 4):
        image = torch.rand(1, 90, 70, channels).repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert len(run(node, image=image, face_analysis=MIDDLE)[0]) == 1


def test_a_second_judge_is_asked_and_must_be_another_one(node, places):
    one_eyed = replace(MIDDLE, recogniser=Sees("second"))
    pictures = batch(noise(), noise(1))
    report = run(node, image=pictures, face_analysis=replace(MIDDLE, recogniser=Sees("first")), second_judge=one_eyed)[
        2
    ]
    assert "by the second judge" in report
    with pytest.raises(LikenessError, match="on 'second_judge' is second, as the first one: connect another one"):
        run(node, image=pictures, face_analysis=one_eyed, second_judge=one_eyed)
    with pytest.raises(LikenessError, match=r"face analysis input holds a str|second_judge"):
        run(node, image=pictures, face_analysis=MIDDLE, second_judge="dlib")


def test_a_style_needs_no_face(node, places):
    dataset, _, _ = run(node, kind="style", image=batch(noise(1), noise(2)))
    assert all(sample.mask is None and "in the style of ohwx" in sample.caption for sample in dataset.pictures)
    black = noise(3)
    black[60:100, 50:80] = 0
    [sample] = run(node, kind="style", image=batch(black), face_analysis=MIDDLE)[0].pictures
    assert sample.mask is not None and not sample.mask.any()


def test_templates_are_the_users_words(node, places):
    dataset, _, _ = run(
        node, image=batch(noise(1), noise(2)), face_analysis=MIDDLE, templates="a photo of {}\n\n{} in a photo"
    )
    assert [sample.caption for sample in dataset.pictures] == ["a photo of ohwx", "ohwx in a photo"]


# --- saved, edited, read back


def test_what_is_saved_is_edited_and_read_back_and_never_written_again(node, places):
    fill(places / "input" / "anna")
    inputs = {"folder": "anna", "save_as": "anna", "face_analysis": MIDDLE}
    first, _, report = run(node, **inputs)
    saved = places / "output" / "likeness" / "datasets" / "anna"
    assert "in anna" in report and len(list(saved.glob("*.txt"))) == 3
    (saved / "001_0.txt").write_text("{} laughs")
    Image.fromarray(np.full((128, 128), 255, np.uint8)).save(saved / "002_1.mask.png")
    (saved / "003_2.png").unlink()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in saved.iterdir()}
    again, _, _ = run(node, **inputs)
    assert [sample.caption for sample in again.pictures] == ["ohwx laughs", first.pictures[1].caption]
    assert again.pictures[1].mask.min() == 255
    named, _, _ = run(node, folder=str(saved))
    assert [sample.caption for sample in named.pictures] == [sample.caption for sample in again.pictures]
    other, _, _ = run(node, **inputs, class_word="woman")
    assert other.folder == "anna_2" and len(other) == 3
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in saved.iterdir()} == before


def test_edits_and_new_photos_make_the_host_run_the_node_again(node, places):
    folder = fill(places / "input" / "anna")
    run(node, folder="anna", save_as="anna", face_analysis=MIDDLE)

    def state():
        return node.fingerprint_inputs(folder="anna", save_as="anna", kind="person")

    states = [state()]
    caption = places / "output" / "likeness" / "datasets" / "anna" / "001_0.txt"
    caption.write_text("{} laughing")
    states.append(state())
    Image.fromarray(noise(9)).save(folder / "new.png")
    states.append(state())
    assert len(set(states)) == 3 and state() == states[-1]
    assert node.fingerprint_inputs(folder="missing", save_as="../..") == node.fingerprint_inputs(folder="missing")


def test_a_dataset_is_found_by_its_bare_name_and_takes_no_more_images(node, places):
    fill(places / "input" / "anna")
    run(node, folder="anna", save_as="of anna", face_analysis=MIDDLE)
    assert len(run(node, folder="of anna")[0]) == 3
    with pytest.raises(LikenessError, match="is a finished dataset, to which images cannot be added"):
        run(node, folder="of anna", image=batch(noise()))


# --- what goes wrong


@pytest.mark.parametrize("name", ["../secrets", "/etc", "anna/../../secrets", "..\0", "~/x/../../../.."])
def test_folders_outside_of_comfyui_are_refused(node, places, name):
    (places / "secrets").mkdir()
    with pytest.raises(LikenessError, match=r"lies outside of ComfyUI's input and output folders|was not found"):
        run(node, folder=name, face_analysis=MIDDLE)
    if name == "../secrets":
        with pytest.raises(LikenessError, match="lies outside"):
            run(node, folder=str(places / "secrets"), face_analysis=MIDDLE)


def test_missing_and_empty_folders_are_told_apart(node, places):
    with pytest.raises(LikenessError, match=r"'anna' was not found in .*input"):
        run(node, folder="anna", face_analysis=MIDDLE)
    (places / "input" / "anna").mkdir()
    with pytest.raises(LikenessError, match="'anna' holds no images"):
        run(node, folder="anna", face_analysis=MIDDLE)
    with pytest.raises(LikenessError, match="no image to train on"):
        run(node, face_analysis=MIDDLE)


def test_a_batch_without_a_face_and_one_picture_only_are_said(node, places):
    with pytest.raises(LikenessError, match=r"None of the 1 images is fit.*image 1: no face was found"):
        run(node, image=batch(np.zeros((90, 90, 3), np.uint8)), face_analysis=MIDDLE)
    with pytest.raises(LikenessError, match=r"1 of 2 images are unfit.*image 2: no face was found"):
        run(node, image=batch(noise(), noise(1) * 0), face_analysis=MIDDLE, unfit="stop")
    assert "There is one image only" in run(node, image=batch(noise()), face_analysis=MIDDLE)[2]


def test_values_that_a_workflow_file_may_hold_are_checked(node, places):
    image = batch(noise())
    for changes, sentence in (
        ({"kind": "dog"}, "'dog' is not a choice for kind"),
        ({"unfit": "x"}, "not a choice for unfit"),
        ({"framing": "x"}, "not a choice for framing"),
        ({"resolution": 100}, "not a multiple of 8"),
        ({"least_sharpness": float("nan")}, "least_sharpness is nan"),
        ({"trigger_word": "two words"}, "is not one word"),
        ({"templates": "a photo"}, r"has no \{\}"),
        ({"save_as": "../x"}, "The name '../x' holds '/'"),
        ({"trigger_word": "anna(v2)"}, r"holds '\(', which prompts do not read as a letter"),
        ({"class_word": "a {b}"}, "The class word"),
        ({"identity": "x"}, "holds a str, not an identity"),
        ({"face_analysis": "x"}, "holds a str without a face detector"),
        ({"face_analysis": None}, "without a face analysis: connect one"),
        ({"image": torch.full((1, 64, 64, 3), float("nan"))}, "not numbers"),
    ):
        with pytest.raises(LikenessError, match=sentence):
            run(node, **{"image": image, "face_analysis": MIDDLE, **changes})


@pytest.mark.parametrize("name", ["a" * 300, "\ud800", "x\udcff", "a\0b", "../..", "/etc", "con"])
def test_any_folder_and_name_is_answered_in_one_sentence(node, places, name):
    for inputs in ({"folder": name}, {"image": batch(noise()), "save_as": name}):
        with pytest.raises(LikenessError) as caught:
            run(node, face_analysis=MIDDLE, **inputs)
        assert str(caught.value).encode()
        node.fingerprint_inputs(**{key: inputs.get(key, "") for key in ("folder", "save_as")})


def test_what_lies_in_the_folder_and_is_not_used_is_said(node, places, caplog):
    folder = fill(places / "input" / "anna")
    (folder / "0.caption").write_text("{} in the rain")
    (folder / "x.txt").write_text("nobody")
    (folder / "raw.cr2").touch()
    fill(folder / "2_ohwx", 1)
    Image.fromarray(noise(7)).save(folder / "2_ohwx" / "0.gif")
    (folder / "2_ohwx" / "0.png").unlink()
    before = node.fingerprint_inputs(folder="anna")
    dataset, _, report = run(node, folder="anna", face_analysis=MIDDLE, save_as="anna")
    assert [(sample.name, sample.repeats) for sample in dataset.pictures][-1] == ("2_ohwx/0.gif", 2)
    assert dataset.pictures[0].caption == "ohwx in the rain" and dataset.pictures[0].is_captioned
    for sentence in ("x.txt: not used, because no image", "raw.cr2: raw files of cameras", "words in the names"):
        assert sentence in report and sentence in caplog.text
        assert sentence in run(node, folder="anna", face_analysis=MIDDLE, save_as="anna")[2], "read back, too"
    with pytest.raises(LikenessError, match=r"1 of 5 images are unfit .*raw\.cr2"):
        run(node, folder="anna", face_analysis=MIDDLE, unfit="stop")
    (folder / "2_ohwx" / "0.txt").write_text("{} is back")
    assert node.fingerprint_inputs(folder="anna") != before


def test_cancel_stops_between_photos_and_writes_nothing(node, places):
    import comfy.model_management

    fill(places / "input" / "anna")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(node, folder="anna", save_as="anna", face_analysis=MIDDLE)
    assert not list((places / "output" / "likeness" / "datasets").iterdir())


# --- through the server


def test_a_folder_becomes_a_dataset_through_the_server_and_edits_count(server, client, photos):
    folder = server.base / "input" / "train_me"
    folder.mkdir()
    for name, picture in photos.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    prompt = {
        "1": {"class_type": "LikenessLoadFaceAnalysis", "inputs": {"model": "buffalo_l", "provider": "CPU"}},
        "2": {
            "class_type": NODE,
            "inputs": {
                "kind": "person",
                "trigger_word": "ohwx",
                "class_word": "person",
                "resolution": 256,
                "framing": "head and shoulders",
                "unfit": "leave out",
                "masks": "ellipse",
                "templates": "",
                "folder": "train_me",
                "save_as": "by server",
                "face_analysis": ["1", 0],
                "smallest_face": 64,
                "least_sharpness": 15.0,
                "outlier_threshold": -1.0,
            },
        },
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
    }
    first = client.run(prompt)
    assert "2 images of a person" in first.outputs["2"]["text"][0]
    [page] = client.images(first, "3")
    assert page.std() > 30
    saved = server.base / "output" / "likeness" / "datasets" / "by server"
    assert json.loads((saved / "dataset.json").read_text())["trigger"] == "ohwx"
    assert "2" in client.run(prompt).executed, "the folder is new"
    assert "2" in client.run(prompt).cached
    next(saved.glob("001*.png")).unlink()
    edited = client.run(prompt)
    assert "was deleted and is not used" in edited.outputs["2"]["text"][0]
    for path in sorted(saved.iterdir()):
        os.utime(path)
    assert "1 image of a person" in client.run(prompt).outputs["2"]["text"][0]
