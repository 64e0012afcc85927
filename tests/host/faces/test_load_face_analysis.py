"""Load Face Analysis: what is offered, what is opened, and what is missing."""

from __future__ import annotations

import logging
import sys

import pytest
from helpers.by_colour import BUILT_IN, FREE, options

from likeness.errors import LikenessError

NOT_INSTALLED = " (not installed)"


def test_packs_on_disk_are_listed_before_what_is_always_there(nodes, places, files):
    load = nodes["LikenessLoadFaceAnalysis"]
    no_files = [FREE[1], *BUILT_IN[:2]]
    missing = [f"{name}{NOT_INSTALLED}" for name in (*no_files, "buffalo_l", "antelopev2")]
    assert options(load, "model") == [
        *("miniature", FREE[0], "MTCNN (no recogniser)", "LBP cascade (boxes only)", "miniature-judge"),
        *missing,
    ], "the first, which a new node has, recognises people"
    for name in ("antelopev2", "buffalo_l", "another"):
        files.write_recogniser(places.models / "insightface" / "models" / name / "w600k_r50.onnx")
    here = ["buffalo_l", "antelopev2", "another", FREE[0], *BUILT_IN[2:]]
    assert options(load, "model") == [*here, *missing[:3]]


def test_free_recognisers_that_are_here_come_first(nodes, real_faces):
    listed = options(nodes["LikenessLoadFaceAnalysis"], "model")
    assert listed[0] == FREE[0] and listed[1:3] == [FREE[1], BUILT_IN[0]]


@pytest.mark.parametrize("mark", ["", NOT_INSTALLED])
def test_a_choice_that_was_marked_when_it_was_saved_is_the_same_choice(run, places, pack, mark):
    with pytest.raises(LikenessError, match="the face pack 'buffalo_l'"):
        run("LoadFaceAnalysis", model=f"buffalo_l{mark}", provider="CPU")
    (places.models / "insightface" / "models").mkdir(parents=True)
    (places.models / "insightface" / "models" / "buffalo_l").symlink_to(pack)
    assert run("LoadFaceAnalysis", model=f"buffalo_l{mark}", provider="CPU")[0].recogniser.name == "buffalo_l"


def test_a_pack_is_opened_once_and_its_licence_is_logged(run, places, pack, caplog):
    (places.models / "insightface" / "models").mkdir(parents=True)
    (places.models / "insightface" / "models" / "buffalo_l").symlink_to(pack)
    with caplog.at_level(logging.INFO):
        (first,) = run("LoadFaceAnalysis", model="buffalo_l", provider="CPU")
        (second,) = run("LoadFaceAnalysis", model="buffalo_l", provider="CPU")
    assert "[likeness]" in caplog.text and "non-commercial research only" in caplog.text
    assert first.recogniser.name == "buffalo_l"
    assert first.recogniser.session is second.recogniser.session


@pytest.mark.parametrize("model", BUILT_IN[2:])
def test_analyses_without_files_open(run, places, model):
    (analysis,) = run("LoadFaceAnalysis", model=model, provider="auto")
    own = model.startswith("miniature")  # the others find faces, and know nobody
    assert (analysis.recogniser is not None) == own and analysis.licence


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("buffalo_l", ["det_10g.onnx", "w600k_r50.onnx", "models/insightface/models/buffalo_l", "likeness models get"]),
        ("my_pack", ["my_pack", "insightface"]),
        ("../../buffalo_l", ["leaves the models folder"]),
        (BUILT_IN[0], ["face_detection_yunet_2023mar.onnx", "opencv_zoo", "likeness models get yunet"]),
        (
            FREE[1],
            ["dlib_face_recognition_resnet_model_v1.dat", "models/dlib", "pip install", "face-recognition-models"],
        ),
        (BUILT_IN[1], ["detection_Resnet50_Final.pth", "models/facexlib", "likeness models get"]),
    ],
)
def test_missing_files_are_named_with_their_folder(run, places, model, words):
    with pytest.raises(LikenessError) as error:
        run("LoadFaceAnalysis", model=model, provider="auto")
    assert not [word for word in words if word not in str(error.value)]


def test_a_missing_package_is_named(run, places, monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(LikenessError, match="pip install --no-deps facenet-pytorch"):
        run("LoadFaceAnalysis", model=BUILT_IN[2], provider="auto")


def test_an_unknown_provider_is_refused(run, places):
    with pytest.raises(LikenessError, match=r"provider.*CPU"):
        run("LoadFaceAnalysis", model=BUILT_IN[3], provider="NPU")


# --- what works with nothing but packages


def test_works_now_takes_a_free_recogniser_and_shows_its_licence(nodes, real_faces):
    found = nodes["LikenessLoadFaceAnalysis"].execute(model=FREE[0], provider="CPU")
    analysis = found.result[0]
    assert analysis.recogniser.name == "dlib" and analysis.commercial is True
    (shown,) = found.ui.as_dict()["text"]
    assert "YuNet: MIT; dlib's recogniser: CC0-1.0" in shown and "commercial use: allowed" in shown


def test_works_now_takes_a_pack_and_then_detectors_where_nothing_is_free(run, places, pack, monkeypatch):
    from likeness.faces import ready

    (analysis,) = run("LoadFaceAnalysis", model=FREE[0], provider="CPU")
    assert analysis.name == "MTCNN" and analysis.recogniser is None
    (places.models / "insightface" / "models").mkdir(parents=True)
    (places.models / "insightface" / "models" / "buffalo_l").symlink_to(pack)
    (analysis,) = run("LoadFaceAnalysis", model=FREE[0], provider="CPU")
    assert analysis.recogniser.name == "buffalo_l" and "non-commercial" in analysis.licence
    monkeypatch.setattr(ready, "list_insightface_packs", list)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    assert run("LoadFaceAnalysis", model=FREE[0], provider="CPU")[0].detector.name == "LBP cascade"


def test_opencv_and_dlib_open_from_packages(run, real_faces):
    assert run("LoadFaceAnalysis", model=BUILT_IN[0], provider="CPU")[0].recogniser.name == "sface"
    assert run("LoadFaceAnalysis", model=FREE[1], provider="CPU")[0].recogniser.name == "dlib"
