"""Which files of a folder are photos, and what is said about the others."""

from __future__ import annotations

import os

import bad_values
import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import photo_list
from likeness.faces.photo_list import list_photos, photos_among, shown
from likeness.faces.photos import PICTURE_SUFFIXES

PIXELS = Image.fromarray(np.zeros((24, 24, 3), np.uint8))


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def without_packages(monkeypatch):
    """An environment that reads neither HEIC nor AVIF."""
    photo_list._unsupported.cache_clear()
    monkeypatch.setattr(photo_list, "find_spec", lambda name: None)
    monkeypatch.setattr(photo_list, "_reads_avif", lambda: False)
    yield
    photo_list._unsupported.cache_clear()


def test_every_form_that_is_read_is_a_photo_whatever_its_case(tmp_path, monkeypatch):
    photo_list._unsupported.cache_clear()
    monkeypatch.setattr(photo_list, "find_spec", lambda name: object())
    expected = sorted(f"{suffix[1:]}{ending}" for suffix in PICTURE_SUFFIXES for ending in (suffix, suffix.upper()))
    for name in expected:
        (tmp_path / name).touch()
    found = list_photos(tmp_path)
    assert names(found.photos) == expected and not found.not_used
    photo_list._unsupported.cache_clear()


def test_everything_picture_like_that_is_not_used_is_named_with_its_reason(tmp_path, without_packages):
    for name in ("a.heic", "b.HEIF", "c.avif", "d.cr2", "e.psd", "f.mp4", "g.jxl", "notes.txt", "Thumbs.db", ".h.heic"):
        (tmp_path / name).touch()
    PIXELS.save(tmp_path / "i.jpg")
    for source, name in (("JPEG", "j"), ("PNG", "k.png_large"), ("WEBP", "l.download"), ("GIF", "m.gif~")):
        PIXELS.save(tmp_path / name, source)
    found = list_photos(tmp_path)
    assert names(found.photos) == ["i.jpg"] and names(found.others) == ["Thumbs.db", "notes.txt"]
    said = {sentence.partition(":")[0]: sentence for sentence in found.not_used}
    assert set(said) == {
        "a.heic, b.HEIF",
        "c.avif",
        "d.cr2",
        "e.psd",
        "f.mp4",
        "g.jxl",
        "j, k.png_large, l.download, m.gif~",
    }
    assert "pip install pillow-heif" in said["a.heic, b.HEIF"] and "Pillow 11.3" in said["c.avif"]
    assert "raw files of cameras" in said["d.cr2"] and "name them .jpg" in found.not_used[-1]


def test_many_files_of_one_reason_are_counted(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02d}.nef").touch()
    [sentence] = list_photos(tmp_path).not_used
    assert sentence.startswith("00.nef, 01.nef, 02.nef, 03.nef, 04.nef and 7 more: raw files")


@pytest.mark.parametrize("kind", bad_values.FILES)
def test_what_is_no_photo_is_no_error(tmp_path, kind):
    place = tmp_path / "photos"
    place.mkdir()
    bad_values.FILES[kind](place / "a.jpg")
    bad_values.FILES[kind](place / "b")
    found = list_photos(place)
    if kind in ("fifo", "socket", "broken link", "looping link"):
        assert not found.photos and "a.jpg: these are not files" in found.not_used[0]
    elif kind not in ("missing", "folder"):
        assert names(found.photos) == ["a.jpg"], "its content is the reader's business"


def test_masks_and_folders_are_told_apart(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "a.mask.png", "b.MASK.jpg"):
        PIXELS.save(tmp_path / name)
    found = list_photos(tmp_path)
    assert names(found.photos) == ["a.png"] and names(found.masks) == ["a.mask.png", "b.MASK.jpg"]
    assert names(found.folders) == ["folder.png"]


def test_folders_below_are_looked_into_when_asked_and_links_are_named(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for place in (tmp_path, tmp_path / "x", tmp_path / "x" / "y"):
        PIXELS.save(place / "a.tiff")
        (place / "b.raf").touch()
    assert names(list_photos(tmp_path).photos) == ["a.tiff"]
    deep = list_photos(tmp_path, deep=True)
    assert [path.relative_to(tmp_path).as_posix() for path in deep.photos] == ["a.tiff", "x/a.tiff", "x/y/a.tiff"]
    assert deep.not_used[0].startswith("b.raf, x/b.raf, x/y/b.raf") and "link: links to folders" in deep.not_used[1]


def test_a_folder_that_cannot_be_opened_is_one_sentence(tmp_path):
    for place in (tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(LikenessError, match="cannot be opened"):
            list_photos(place)


def test_names_that_are_no_text_can_be_shown(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.cr2")).touch()
    [sentence] = list_photos(tmp_path).not_used
    assert sentence.encode() and "caf" in sentence and shown("a\nb\x1b") == "a?b?"


def test_files_and_folders_may_be_named_together(tmp_path):
    place = tmp_path / "anna"
    place.mkdir()
    PIXELS.save(place / "a.png")
    (place / "b.cr2").touch()
    PIXELS.save(tmp_path / "c.png")
    found = photos_among([tmp_path / "c.png", place])
    assert names(found.photos) == ["c.png", "a.png"] and found.not_used[0].startswith("anna: b.cr2: raw")
    (tmp_path / "empty" / "10_anna").mkdir(parents=True)
    PIXELS.save(tmp_path / "empty" / "10_anna" / "a.png")
    (tmp_path / "empty" / "d.cr2").touch()
    with pytest.raises(LikenessError, match=r"'empty' holds no images .*d\.cr2: raw .* images in 10_anna"):
        photos_among([tmp_path / "empty"])


def test_likeness_identity_takes_folders_and_names_what_it_does_not_use(tmp_path, monkeypatch, capsys):
    from likeness import cli
    from likeness.faces import photos

    place, read = tmp_path / "anna", []
    place.mkdir()
    for name in ("a.png", "b.tif"):
        PIXELS.save(place / name)
    (place / "c.cr2").touch()

    def stop(path):
        read.extend(names([path]))
        raise LikenessError("enough")

    monkeypatch.setattr(photos, "read_photo", stop)
    with pytest.raises(LikenessError, match="enough"):
        cli.command_tree()(["identity", str(place), "--out", str(tmp_path / "out")], standalone_mode=False)
    assert read == ["a.png", "b.tif"] and "not used: anna: c.cr2: raw files" in capsys.readouterr().out
