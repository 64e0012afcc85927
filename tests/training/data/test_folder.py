"""Photos of every mode from a folder, and a dataset's folder, which belongs to its user once it is written."""

from __future__ import annotations

import json
import os
import weakref
import zlib
from dataclasses import replace
from pathlib import Path

import bad_values
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import photos
from likeness.locks import owned
from likeness.training.data import folder as dataset_folder
from likeness.training.data import photo_files
from likeness.training.data.dataset import Dataset, DatasetKind, DatasetPicture
from likeness.training.data.folder import load_dataset, place_for, save_dataset
from likeness.training.data.photo_files import read_caption, read_folder, read_mask, read_picture


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
    with pytest.raises(LikenessError, match=r"holds no images \(.*, jfif, jpe, jpeg, jpg"):
        read_folder(tmp_path)


def test_masks_and_captions_that_do_not_fit_are_errors(tmp_path):
    Image.fromarray(ramp(8, 8)).save(tmp_path / "a.mask.png")
    with pytest.raises(LikenessError, match=r"a\.mask\.png has 8x8 pixels and its image 32x24"):
        read_mask(tmp_path / "a.mask.png", (24, 32))
    (tmp_path / "c.txt").write_text(" \n")
    assert read_caption(tmp_path / "c.txt") is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("Zoë lacht".encode("latin-1"), "is not UTF-8"),
        (b"\xff\xfe\x00ab", "is not UTF-8"),
        (b"an ohwx\0 person", "holds bytes that are not text"),
        (b"\x1b[2J ohwx", "holds bytes that are not text"),
        (b"x" * 5000, "more than 4000 characters"),
        ("ß".encode() * 9000, "more than 4000 characters"),
        (b"\xff" * 100_000, "is not UTF-8"),
    ],
)
def test_captions_that_are_no_captions_are_errors(tmp_path, content, problem):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(LikenessError, match=rf"The caption a\.txt .*{problem}"):
        read_caption(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_of_usual_editors_are_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("eine Zoe\u0308,\r\n {} lacht\r\n".encode(encoding))
    assert read_caption(tmp_path / "a.txt") == "eine Zoë, {} lacht"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_caption_or_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("captions") / "a.txt"
    file.write_bytes(content)
    try:
        text = read_caption(file)
    except LikenessError as error:
        assert "a.txt" in str(error)
    else:
        assert text is None or (text.encode() and "\n" not in text)


# --- what lies beside images


def put(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        picture = Image.fromarray(np.roll(ramp(), number, 1))
        picture.save(folder / name, {".jfif": "JPEG", ".tif": "TIFF"}.get((folder / name).suffix))


def test_captions_are_found_under_every_usual_name_and_the_others_are_named(tmp_path):
    put(tmp_path, "a.jpg", "a.png", "b.jpg", "c.jfif", "d.tif", "e.gif")
    names = ("a.txt", "a.jpg.txt", "b.caption", "c.TXT", "d.txt", "d.caption", "x.txt", "metadata.jsonl")
    for name in names:
        (tmp_path / name).write_text(f"from {name}")
    (tmp_path / "e.txt").write_text(" ")
    found = read_folder(tmp_path)
    captions = [photo.caption for photo in found.photos]
    assert captions == [*(f"from {name}" for name in ("a.jpg.txt", "a.txt", "b.caption", "c.TXT", "d.txt")), None]
    assert found.notes == [
        "d.caption: not used, because another file of the same image comes first",
        "x.txt: not used, because no image has this name",
        "metadata.jsonl: not used, because captions are read from .txt and .caption files",
    ]
    assert found.photos[-1].remarks == ("e.txt is empty, so that a template is its caption",)
    unread = read_folder(tmp_path, captions=False)
    assert {photo.caption for photo in unread.photos} == {None}
    assert "a.jpg.txt, a.txt, b.caption, c.TXT, d.txt and 1 more: this training does not read captions" in unread.notes


def test_pictures_that_share_a_caption_or_a_mask_are_told(tmp_path):
    put(tmp_path, "a.jpg", "a.png", "a.mask.png")
    (tmp_path / "a.txt").write_text("shared")
    found = read_folder(tmp_path)
    assert [photo.caption for photo in found.photos] == ["shared", "shared"]
    assert found.notes == [
        "a.jpg, a.png share a.txt: name the files a.jpg.txt, a.png.txt to give each its own",
        "a.jpg, a.png share a.mask.png: name the files a.jpg.mask.png, a.png.mask.png to give each its own",
    ]


def test_masks_of_other_forms_are_masks_and_never_photos(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    Image.fromarray(ramp()).save(tmp_path / "a.mask.webp", lossless=True)
    Image.fromarray(ramp()).save(tmp_path / "x.mask.png")
    found = read_folder(tmp_path)
    assert [photo.name for photo in found.photos] == ["a.jpg", "b.jpg"]
    assert np.array_equal(found.photos[0].mask, ramp()) and found.photos[1].mask is None
    assert found.notes == ["x.mask.png: not used, because no image has this name"]


def test_pictures_that_cannot_be_used_are_all_named(tmp_path):
    put(tmp_path, "a.jpg")
    for name in ("b.cr2", "c.cr2", "d.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    found = read_folder(tmp_path)
    assert [sentence.partition(":")[0] for sentence in found.unreadable[:2]] == ["b.cr2, c.cr2", "d.mp4"]
    assert "broken.jpg" in found.unreadable[2] and "truncated" in found.unreadable[2]


def bomb(side: int) -> bytes:
    """The beginning of a PNG that says it has side² pixels."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def test_bombs_and_cut_files_are_left_out_and_the_largest_photos_are_made_smaller(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000) + b"\0\0\0\0IDAT")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-30])
    monkeypatch.setattr(photos, "MOST_PIXELS", 24 * 32 // 4)
    found = read_folder(tmp_path)
    assert [photo.pixels.shape for photo in found.photos] == [(12, 16, 3)]
    [too_large, cut] = found.unreadable
    assert "bomb.png" in too_large and "too large" in too_large and "cut.jpg" in cut and "truncated" in cut


def test_of_an_animation_the_first_frame_is_used_and_that_is_said(tmp_path):
    frames = [Image.fromarray(np.roll(ramp(), number, 1)) for number in range(3)]
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "e.gif")
    frames[0].convert("RGB").save(tmp_path / "f.jpg", format="MPO", save_all=True, append_images=frames[1:])
    found = read_folder(tmp_path)
    assert [photo.remarks for photo in found.photos] == [("only its first frame is used",)] * 4 + [(), ()]


def test_folders_of_kohya_are_read_with_their_repeats(tmp_path):
    put(tmp_path / "20_ohwx person", "a.jpg", "b.jpg")
    put(tmp_path / "5_ohwx person", "a.jpg")
    put(tmp_path / "0_off", "a.jpg")
    put(tmp_path / "more", "c.jpg")
    (tmp_path / "20_ohwx person" / "a.txt").write_text("{} in the rain")
    found = read_folder(tmp_path)
    assert [(photo.name, photo.repeats) for photo in found.photos] == [
        *(("20_ohwx person/a.jpg", 4), ("20_ohwx person/b.jpg", 4), ("5_ohwx person/a.jpg", 1))
    ]
    assert found.photos[0].caption == "{} in the rain"
    said = "\n".join(found.notes)
    assert "The images in 0_off, more are not used" in said
    assert "words in the names of folders (ohwx person) are not used" in said
    (tmp_path / "1_alone").mkdir()
    put(tmp_path / "1_alone", "a.jpg")
    assert {photo.repeats for photo in read_folder(tmp_path).photos} == {20, 5, 1}
    (tmp_path / "100000_x").mkdir()
    with pytest.raises(LikenessError, match="asks for 100000 repeats"):
        read_folder(tmp_path)


def test_one_folder_of_kohya_alone_repeats_nothing(tmp_path):
    put(tmp_path / "10_person", "a.jpg")
    [photo] = read_folder(tmp_path).photos
    assert photo.repeats == 1
    with pytest.raises(LikenessError, match="images in img: name that folder"):
        (tmp_path / "top" / "img").mkdir(parents=True)
        put(tmp_path / "top" / "img", "a.jpg")
        read_folder(tmp_path / "top")


def test_photos_are_read_when_they_are_wanted_and_not_kept(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg", "b.jpg")
    read, reader = [], photo_files.read_photo_file
    monkeypatch.setattr(photo_files, "read_photo_file", lambda path: read.append(path.name) or reader(path))
    one, _ = read_folder(tmp_path).photos
    assert read == ["a.jpg", "b.jpg"], "each is tried before the work begins"
    pixels = one.pixels
    assert one.pixels is pixels and read[2:] == ["a.jpg"], "it is there while somebody holds it"
    gone = weakref.ref(pixels)
    del pixels
    assert gone() is None
    assert one.pixels.shape == (24, 32, 3) and read[3:] == ["a.jpg"]


# --- datasets


def dataset(count=2, **changes):
    def sample(number):
        rng = np.random.default_rng(number)
        return DatasetPicture(
            name=f"Anna (am Meer) {number}.jpg",
            pixels=rng.integers(0, 256, (16, 24, 3), np.uint8),
            mask=rng.integers(0, 256, (16, 24), np.uint8),
            caption=f"a photo of a ohwx person, {number}",
            original_size=(160, 240),
            crop=(3, 4),
            keypoints=np.arange(10, dtype=np.float32).reshape(5, 2),
            remarks=("enlarged",),
        )

    pictures = tuple(sample(number) for number in range(count))
    fields = {"kind": DatasetKind.PERSON, "trigger": "ohwx", "class_word": "person"} | changes
    return Dataset(pictures=pictures, **fields)


@pytest.fixture
def saved(tmp_path):
    return save_dataset(dataset(), tmp_path / "data" / "anna", "made-of")


def test_what_is_written_is_read_back(saved):
    before, after = dataset(), load_dataset(saved)
    assert (after.kind, after.trigger, after.class_word) == (DatasetKind.PERSON, "ohwx", "person")
    for one, other in zip(before.pictures, after.pictures, strict=True):
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
    first_sample, second_sample = load_dataset(saved).pictures
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
    sample = load_dataset(saved).pictures[0]
    assert sample.keypoints is None
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(picture)
    with pytest.raises(LikenessError, match="keep the sides of a dataset's images multiples of 8"):
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
    with pytest.raises(LikenessError, match="has 32x24 pixels and its image 24x16"):
        load_dataset(saved)
    for path in saved.glob("*.png"):
        path.unlink()
    with pytest.raises(LikenessError, match="has no images any more"):
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


@pytest.mark.parametrize("name", [*bad_values.NAMES, ".x", "C:anna"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    if name != name.strip() and name.strip() not in bad_values.NAMES:
        assert place_for(tmp_path, name, "x")[0].name == name.strip()
        return
    with pytest.raises(LikenessError, match=r"^The name '"):
        place_for(tmp_path, name, "x")


def test_an_interrupted_or_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_folder.json, "dumps", full)
    with pytest.raises(LikenessError, match=r"could not be written to anna \(No space left on device\)"):
        save_dataset(dataset(), tmp_path / "anna")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_dataset_or_damaged_are_refused(saved):
    with pytest.raises(LikenessError, match="is not a dataset: it has no dataset"):
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


@pytest.mark.parametrize(
    ("key", "value", "still"),
    [
        *(("left out", value, True) for value in (3, [3], [{"photo": 1, "reasons": 2}], [{"photo": "x"}], "abc")),
        *(("remarks", value, True) for value in (3, {"a": 1}, [1, "kept", "\ud800"])),
        *(("keypoints", value, True) for value in (3, [[1, 2]], [["x"] * 2] * 5, [[1e400, 0]] * 5, {"a": 1})),
        *(("notice", value, True) for value in (3, None)),
        *(("repeats", value, False) for value in ("x", 1.5, -1, True)),
        *(("caption", value, False) for value in (3, None, "\ud800 ohwx")),
        *(("crop", value, False) for value in (3, ["a", "b"], [1], [1e400, 0], [-1, 0])),
        *(("original size", value, False) for value in (None, [float("nan"), 1])),
        *(("trigger", value, False) for value in (3, "", "two words", "\ud800", "a(b)")),
        *(("class word", value, False) for value in (None, "{x}")),
        *(("kind", value, False) for value in ([], "cat")),
        *(("version", value, False) for value in ("1", None, 1e400)),
        *(("samples", value, False) for value in (None, {}, [1], "abc", [{}])),
    ],
)
def test_what_decides_nothing_is_set_aside_and_what_decides_is_one_sentence(saved, key, value, still):
    index = json.loads((saved / "dataset.json").read_text())
    place = index if key in index else index["samples"][0]
    place[key] = value
    (saved / "dataset.json").write_text(json.dumps(index))
    if not still:
        with pytest.raises(LikenessError) as caught:
            load_dataset(saved)
        assert str(caught.value).encode()
        return
    loaded = load_dataset(saved)
    assert len(loaded) == 2 and loaded.report().encode()


DAMAGE = {
    "latin-1": lambda whole: whole.replace(b"ohwx", "öhwx".encode("latin-1")),
    "UTF-16": lambda whole: whole.decode().encode("utf-16"),
    "NUL": lambda whole: whole[:100] + b"\0" * 20 + whole[120:],
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "nested": lambda whole: b"[" * 100_000,
    "nested below": lambda whole: whole.replace(b'"notice": ', b'"notice": ' + b"[" * 100_000),
    "number": lambda whole: whole.replace(b'"version": 1', b'"version": ' + b"1" * 10_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_one_sentence(saved, damage):
    file = saved / "dataset.json"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(LikenessError, match=r"dataset\.json in 'anna' is damaged"):
        load_dataset(saved)
    assert place_for(saved.parent, "anna", "made-of")[0].name == "anna_2"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "a" * 999]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_any_value_anywhere_in_the_index_is_set_aside_or_one_sentence(saved):
    file = saved / "dataset.json"
    whole = file.read_text()

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def check(data):
        index = json.loads(whole)
        place = data.draw(st.sampled_from([index, index["samples"][0]]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(VALUES)
        file.write_text(json.dumps(index))
        try:
            loaded = load_dataset(saved)
        except LikenessError as error:
            assert str(error).encode()
        else:
            assert loaded.report().encode() and loaded.digest() and loaded.examples()

    check()


def test_repeats_and_own_captions_are_kept(tmp_path):
    [first, second] = dataset().pictures
    whole = replace(dataset(), pictures=(replace(first, repeats=3), replace(second, is_captioned=True)))
    folder = save_dataset(whole, tmp_path / "anna")
    loaded = load_dataset(folder)
    assert [sample.repeats for sample in loaded.pictures] == [3, 1]
    assert [sample.is_captioned for sample in loaded.pictures] == [False, True]
    one, again, _, other = loaded.examples()
    assert one is again and one is not other, "what is computed of it is computed once"
    assert loaded.digest() != replace(loaded, pictures=dataset().pictures).digest()
    (folder / "001_Anna_am_Meer_0.txt").write_text("{} laughs")
    assert load_dataset(folder).pictures[0].is_captioned


def test_no_path_of_the_users_machine_is_written(saved):
    assert str(saved.parent) not in (saved / "dataset.json").read_text()


def test_photos_that_a_killed_process_left_are_removed_at_the_next_start(tmp_path):
    def left(owner: int) -> Path:
        name = owned(".unfinished_").replace(f"-{os.getpid()}-", f"-{owner}-")
        place = tmp_path / f"{name}abc"
        place.mkdir()
        (place / "001_photo.png").touch()
        return place

    dead, alive = left(10**9), left(os.getppid())
    place_for(tmp_path, "anna", "x")
    assert alive.exists() and not dead.exists()
    left(10**9)
    save_dataset(dataset(), tmp_path / "anna")
    assert alive.exists() and not dead.exists()
