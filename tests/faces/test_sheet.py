"""Photos from files, the contact sheet, and the command that makes an identity of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.errors import LikenessError
from likeness.faces.identity import Identity
from likeness.faces.sheet import ROW, read_photos, sample_photos


def test_photos_are_turned_the_way_the_camera_was_held(tmp_path):
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # held upright, a quarter turn
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_photos([tmp_path / "a.jpg"])[0].shape == (40, 20, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    Image.new(mode, (7, 5)).save(tmp_path / f"a{suffix}")
    (photo,) = read_photos([tmp_path / f"a{suffix}"])
    assert photo.shape == (5, 7, 3)
    assert photo.dtype == np.uint8


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(LikenessError, match=r"a\.jpg.*cannot be read"):
        read_photos([tmp_path / "a.jpg"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from likeness.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_demo_makes_a_sheet_and_an_identity_and_keeps_earlier_ones(tmp_path):
    for _ in range(2):
        result = run("identity", "--sample", "--faces", "mtcnn", "--out", str(tmp_path))
        assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "person.png",
        "person.safetensors",
        "person_2.png",
        "person_2.safetensors",
    ]
    assert "1 faces in all" in result.stdout and "consent" in result.stdout
    assert Image.open(tmp_path / "person.png").height == 3 * ROW
    identity = Identity.load(tmp_path / "person.safetensors")
    assert len(identity) == 1 and not identity.has_embeddings
    assert sample_photos()[0].shape == (512, 512, 3)


def test_without_photos_the_command_says_what_to_do():
    result = run("identity")
    assert result.returncode == 1
    assert "--sample" in result.stderr


def test_a_photo_without_a_face_does_not_end_the_command(tmp_path):
    Image.fromarray(sample_photos()[0]).save(tmp_path / "astronaut.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "wall.png")
    files = [str(tmp_path / "wall.png"), str(tmp_path / "astronaut.png")]
    result = run("identity", *files, "--faces", "mtcnn", "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "photo 1 shows no face; skipped" in result.stdout and "1 wall.png, 2 astronaut.png" in result.stdout


@pytest.mark.parametrize("options", [["--name", "../x"], ["--name", "/x"], ["--name", "a/b"], ["--out", "file/x"]])
def test_names_and_folders_are_checked_before_anything_is_looked_at(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    result = CliRunner().invoke(cli.command_tree(), ["identity", "--sample", "--faces", "no such pack", *options])
    assert isinstance(result.exception, LikenessError) and str(result.exception).startswith(f"{options[0]} ")
    assert not list(tmp_path.rglob("*.safetensors"))
