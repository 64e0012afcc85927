"""Photos of every mode from a folder, and a dataset's folder, which belongs to its user once it is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.training import dataset_folder
from likeness.training.dataset import Dataset, DatasetKind, Sample
from likeness.training.dataset_folder import load_dataset, place_for, save_dataset
from likeness.training.photo_files import read_caption, read_folder, read_mask, read_picture


def ramp(height=24, width=32):
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


# --- photos


def test_transparent_parts_are_put_on_grey_and_told(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[:, :4, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    [photo] = read_folder(tmp_path).photos
    assert photo.pixels[0, 0].tolist() == [255, 0, 0] and photo.pixels[0, 7].tolist() == [127, 127, 127]
    assert photo.remarks == ("its transparent parts were put on grey",)
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    palette.save(tmp_path / "b.png", transparency=palette.getpixel((0, 0)))
    assert "transparent" in read_folder(tmp_path).photos[1].remarks[0]


def test_photos_are_turned_as_the_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg")[0].shape == (20, 10, 3)


def test_a_folder_gives_pictures_with_captions_and_masks_and_nothing_else(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "a.mask.png"):
        Image.fromarray(ramp()).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffa photo\n of {} \n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a caption")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "empty.webp").touch()
    (tmp_path / "folder.png").mkdir()
    found = read_folder(tmp_path)
    assert [photo.name for photo in found.photos] == ["a.png", "b.JPG"]
    assert [photo.caption for photo in found.photos] == ["a photo of {}", None]
    assert found.photos[0].mask is not None and found.photos[1].mask is None
    assert ["broken.png" in found.unreadable[0], "empty.webp" in found.unreadable[1]] == [True, True]


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LikenessError, match=r"holds no pictures \(bmp, jpeg, jpg"):
        read_folder(tmp_path)


def test_masks_and_captions_that_do_not_fit_are_errors(tmp_path):
    Image.fromarray(ramp(8, 8)).save(tmp_path / "a.mask.png")
    with pytest.raises(LikenessError, match=r"a\.mask\.png has 8x8 pixels and its picture 32x24"):
        read_mask(tmp_path / "a.mask.png", (24, 32))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00ab")
    with pytest.raises(LikenessError, match=r"a\.txt is not UTF-8"):
        read_caption(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("x" * 5000)
    with pytest.raises(LikenessError, match="5000 characters"):
        read_caption(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text(" \n")
    assert read_caption(tmp_path / "c.txt") is None


# --- datasets


def dataset(count=2, **changes):
    def sample(number):
        rng = np.random.default_rng(number)
        return Sample(
            name=f"Anna (am Meer) {number}.jpg",
            pixels=rng.integers(0, 256, (16, 24, 3), np.uint8),
            mask=rng.integers(0, 256, (16, 24), np.uint8),
            caption=f"a photo of a ohwx person, {number}",
            original_size=(160, 240),
            crop=(3, 4),
            keypoints=np.arange(10, dtype=np.float32).reshape(5, 2),
            remarks=("enlarged",),
        )

    samples = tuple(sample(number) for number in range(count))
    fields = {"kind": DatasetKind.PERSON, "trigger": "ohwx", "class_word": "person"} | changes
    return Dataset(samples=samples, **fields)


@pytest.fixture
def saved(tmp_path):
    return save_dataset(dataset(), tmp_path / "data" / "anna", "made-of")


def test_what_is_written_is_read_back(saved):
    before, after = dataset(), load_dataset(saved)
    assert (after.kind, after.trigger, after.class_word) == (DatasetKind.PERSON, "ohwx", "person")
    for one, other in zip(before.samples, after.samples, strict=True):
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.mask, other.mask)  # type: ignore[arg-type]
        assert (one.caption, one.original_size, one.crop) == (other.caption, other.original_size, other.crop)
        assert np.array_equal(one.keypoints, other.keypoints)  # type: ignore[arg-type]
        assert one.remarks == other.remarks
    names = sorted(path.name for path in saved.iterdir())
    assert names == [
        "001_Anna_am_Meer_0.mask.png",
        "001_Anna_am_Meer_0.png",
        "001_Anna_am_Meer_0.txt",
        "002_Anna_am_Meer_1.mask.png",
        "002_Anna_am_Meer_1.png",
        "002_Anna_am_Meer_1.txt",
        "dataset.json",
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["anna"], "nothing unfinished is left"


def test_what_the_user_edits_is_what_is_read(saved):
    picture, second = saved / "001_Anna_am_Meer_0.png", saved / "002_Anna_am_Meer_1.png"
    picture.with_suffix(".txt").write_text("{} laughing")
    Image.fromarray(np.full((16, 24), 255, np.uint8)).save(picture.with_suffix(".mask.png"))
    second.with_suffix(".txt").unlink()
    second.with_suffix(".mask.png").unlink()
    first_sample, second_sample = load_dataset(saved).samples
    assert first_sample.caption == "ohwx laughing" and first_sample.mask is not None and first_sample.mask.min() == 255
    assert second_sample.caption == "a photo of a ohwx person, 1" and second_sample.mask is None
    with pytest.raises(LikenessError, match=r"002_Anna_am_Meer_1\.png has no face mask"):
        load_dataset(saved).require_masks()
    second.unlink()
    Image.fromarray(ramp()).save(saved / "new.png")
    after = load_dataset(saved)
    assert len(after) == 1
    assert "002_Anna_am_Meer_1.png was deleted" in after.report() and "new.png was put here later" in after.report()


def test_a_picture_that_was_cropped_loses_its_keypoints_only(saved):
    picture = saved / "001_Anna_am_Meer_0.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    picture.with_suffix(".mask.png").unlink()
    sample = load_dataset(saved).samples[0]
    assert sample.keypoints is None
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(picture)
    with pytest.raises(LikenessError, match="keep the sides of a dataset's pictures multiples of 8"):
        load_dataset(saved)


def test_an_emptied_mask_is_no_mask_for_a_person(saved):
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(saved / "001_Anna_am_Meer_0.mask.png")
    with pytest.raises(LikenessError, match="has no face mask"):
        load_dataset(saved).require_masks()


def test_edits_that_cannot_be_used_are_named(saved):
    caption = saved / "001_Anna_am_Meer_0.txt"
    caption.write_text("a woman")
    with pytest.raises(LikenessError, match=r"001_Anna_am_Meer_0\.png lacks the trigger word 'ohwx'"):
        load_dataset(saved)
    caption.unlink()
    Image.fromarray(ramp()).save(saved / "001_Anna_am_Meer_0.mask.png")
    with pytest.raises(LikenessError, match="has 32x24 pixels and its picture 24x16"):
        load_dataset(saved)
    for path in saved.glob("*.png"):
        path.unlink()
    with pytest.raises(LikenessError, match="has no pictures any more"):
        load_dataset(saved)


def test_nothing_is_ever_overwritten(saved):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(LikenessError, match="'anna' exists already"):
        save_dataset(dataset(1), saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_the_same_photos_find_their_folder_again_and_others_get_a_new_one(saved):
    root = saved.parent
    assert place_for(root, "anna", "made-of") == (saved, True)
    assert place_for(root, " anna ", "other") == (root / "anna_2", False)
    save_dataset(dataset(), root / "anna_2", "other")
    assert place_for(root, "anna", "other") == (root / "anna_2", True)
    (root / "berta").mkdir()
    (root / "berta" / "dataset.json").write_text("[]")
    assert place_for(root, "berta", "made-of") == (root / "berta_2", False)


@pytest.mark.parametrize("name", ["", " ", "../anna", "a/b", "a\\b", "..", ".x", "C:anna", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(LikenessError, match="cannot be a folder's"):
        place_for(tmp_path, name, "x")


def test_an_interrupted_or_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_folder.json, "dumps", full)
    with pytest.raises(LikenessError, match=r"could not be written to anna \(No space left on device\)"):
        save_dataset(dataset(), tmp_path / "anna")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_dataset_or_damaged_are_refused(saved):
    with pytest.raises(LikenessError, match="is no dataset: it has no dataset"):
        load_dataset(saved.parent)
    index = json.loads((saved / "dataset.json").read_text())

    def written(**changes):
        (saved / "dataset.json").write_text(json.dumps(index | changes))
        return saved

    with pytest.raises(LikenessError, match="newer version"):
        load_dataset(written(version=99))
    for damage in (
        {"format": "x"},
        {"kind": "dog"},
        {"version": "x"},
        {"samples": [{"name": "../../x", "caption": "", "size": [8, 8], "original size": [8, 8], "crop": [0, 0]}]},
        {"samples": [{"name": "x"}]},
        {"samples": 3},
    ):
        with pytest.raises(LikenessError, match="is damaged"):
            load_dataset(written(**damage))
    (saved / "dataset.json").write_text("{")
    with pytest.raises(LikenessError, match="is damaged"):
        load_dataset(saved)


def test_no_path_of_the_users_machine_is_written(saved):
    assert str(saved.parent) not in (saved / "dataset.json").read_text()
