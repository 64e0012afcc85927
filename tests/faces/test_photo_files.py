"""One reader for photos and masks in files: every form of file, everywhere in the pack."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import photos
from likeness.faces.photos import read_mask_file, read_photo, read_photo_file

MID_GREY = 127


def ramp(height: int = 24, width: int = 32) -> np.ndarray:
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


def saved(path: Path, pixels: np.ndarray, **how) -> Path:
    Image.fromarray(pixels).save(path, **how)
    return path


def coloured(height: int = 24, width: int = 32) -> np.ndarray:
    grey = ramp(height, width)
    return np.dstack([grey, grey[:, ::-1], np.full_like(grey, 60)])


# --- forms of files


def in_mode(mode: str, grey: np.ndarray) -> Image.Image:
    """A grey image in a mode of PIL."""
    deep = {"I;16": (np.uint16, 257), "I": (np.int32, 257), "F": (np.float32, 1 / 255)}
    if mode in deep:
        dtype, factor = deep[mode]
        return Image.fromarray((grey * np.float64(factor)).astype(dtype))
    return Image.fromarray(np.repeat(grey[..., None], 3, 2)).convert(mode, palette=Image.Palette.ADAPTIVE)


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_same_photo(tmp_path, mode):
    in_mode(mode, ramp()).save(tmp_path / "a.tif")
    photo = read_photo(tmp_path / "a.tif")
    assert photo.shape == (24, 32, 3) and photo.dtype == np.uint8 and photo.flags.writeable
    assert np.abs(photo.astype(int) - ramp()[..., None]).max() <= (255 if mode == "1" else 6)
    assert photo[:, -1].min() >= 250


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(MODES))
def test_every_size_of_every_mode_is_read(tmp_path_factory, height, width, mode):
    file = tmp_path_factory.mktemp("sizes") / "a.tif"
    in_mode(mode, ramp(height, width)).save(file)
    assert read_photo(file).shape == (height, width, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path, name):
    photo = read_photo(saved(tmp_path / name, ramp().astype(np.uint16) * 257))
    assert np.array_equal(photo, np.repeat(ramp()[..., None], 3, 2))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_their_range(tmp_path, white):
    photo = read_photo(saved(tmp_path / "a.tif", (ramp() / 255 * white).astype(np.float32)))
    assert np.array_equal(photo, np.repeat(ramp()[..., None], 3, 2))


def test_highlights_above_white_do_not_turn_the_photo_black(tmp_path):
    values = (ramp() / 255).astype(np.float32)
    values[0, 0] = 1.7
    photo = read_photo(saved(tmp_path / "a.tif", values))
    assert photo[0, 0, 0] == 255 and photo[1, 16, 0] == ramp()[1, 16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_floats_that_are_no_numbers_are_refused(tmp_path, bad):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = bad
    with pytest.raises(LikenessError, match=r"a\.tif.*not numbers"):
        read_photo(saved(tmp_path / "a.tif", values))


def test_hidden_colours_are_never_seen(tmp_path):
    rgba = np.dstack([coloured(), np.zeros((24, 32), np.uint8)])
    assert (read_photo(saved(tmp_path / "a.png", rgba)) == MID_GREY).all()
    half = rgba.copy()
    half[:, :16, 3] = 255
    picture = read_photo_file(saved(tmp_path / "b.png", half))
    assert np.array_equal(picture.rgb[:, :16], coloured()[:, :16]) and (picture.rgb[:, 16:] == MID_GREY).all()
    assert picture.alpha is not None and np.array_equal(picture.alpha, half[..., 3])
    palette = Image.fromarray(coloured()).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "c.png", transparency=bytes(256))
    assert (read_photo(tmp_path / "c.png") == MID_GREY).all()


def test_a_file_is_seen_as_the_host_would_hand_it_over(tmp_path):
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (16, 16, 4), np.uint8)
    import torch

    (handed,) = photos.to_photos(torch.from_numpy(rgba)[None].float() / 255)
    assert np.abs(read_photo(saved(tmp_path / "a.png", rgba)).astype(int) - handed).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_photos_are_turned_as_the_camera_was_held(tmp_path, orientation, name):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    saved(tmp_path / name, pixels, exif=exif)
    with Image.open(tmp_path / name) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    photo = read_photo(tmp_path / name)
    assert photo.shape == expected.shape and np.abs(photo.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_animations_the_first_frame_counts(tmp_path, name):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert np.abs(read_photo(tmp_path / name)[5, 5].astype(int) - [255, 0, 0]).max() < 8


def test_avif_is_read_where_pillow_can(tmp_path):
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert read_photo(saved(tmp_path / "a.avif", coloured())).shape == (24, 32, 3)


def test_heic_is_asked_for_whatever_the_file_is_called(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with pytest.raises(LikenessError, match=r"IMG_1\.jpg.*HEIC.*pillow-heif"):
        read_photo(tmp_path / "IMG_1.jpg")


# --- bounds


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_photos_are_made_smaller_in_their_proportions(tmp_path, monkeypatch, name, orientation):
    monkeypatch.setattr(photos, "MOST_PIXELS", 2000)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(saved(tmp_path / name, coloured(150, 200), exif=exif))
    height, width = photo.shape[:2] if orientation == 1 else photo.shape[1::-1]
    assert 1900 < height * width <= 2000 and abs(width / height - 4 / 3) < 0.03
    upright = photo if orientation == 1 else np.rot90(photo)
    assert np.abs(np.diff(upright[..., 0].astype(float), axis=1)).max() < 16  # still the ramp, resampled


def test_a_photo_and_its_mask_are_made_smaller_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MOST_PIXELS", 2000)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = read_photo(saved(tmp_path / "a.jpg", coloured(151, 203), exif=exif))
    assert read_mask_file(saved(tmp_path / "a.mask.png", ramp(203, 151))).shape == photo.shape[:2]


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(LikenessError, match=r"bomb\.png.*too large.*178 megapixels"):
        read_photo(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some hosts have it
    with pytest.raises(LikenessError, match=r"bomb\.png.*too large"):
        read_photo(tmp_path / "bomb.png")


def test_a_photo_of_108_megapixels_takes_little_memory(tmp_path):
    pytest.importorskip("resource")
    Image.new("RGB", (12_000, 9_000), "navy").save(tmp_path / "phone.jpg")
    code = (
        "import resource, sys; from pathlib import Path; from likeness.faces.photos import read_photo\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shape = read_photo(Path(sys.argv[1])).shape\n"
        "print(*shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "phone.jpg")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    height, width, _, more = (int(number) for number in said.stdout.split())
    scale = 1 if sys.platform == "darwin" else 1024
    assert height * width <= photos.MOST_PIXELS and more * scale < 600e6
    assert not said.stderr


# --- what is not an image


def one_sentence(path: Path) -> str:
    with pytest.raises(LikenessError) as caught:
        read_photo(path)
    text = str(caught.value)
    assert repr(path.name)[1:-1] in text and "\n" not in text
    return text


def test_files_that_are_no_pictures_get_one_sentence(tmp_path):
    whole = saved(tmp_path / "whole.jpg", coloured(200, 200)).read_bytes()
    contents = {
        "text.jpg": b"<html>404</html>",
        "empty.png": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "magic.png": b"\x89PNG\r\n\x1a\n",
        "magic.tif": b"II*\0\xff\xff\xff\xff",
        "magic.gif": b"GIF89a",
        "magic.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as an image" in one_sentence(tmp_path / name)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    assert "does not exist" in one_sentence(tmp_path / "missing.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "does not exist" in one_sentence(tmp_path / "link.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "is a folder" in one_sentence(tmp_path / "folder.jpg")
    one_sentence(tmp_path / ("x" * 300 + ".jpg"))
    one_sentence(tmp_path / "a\0b.jpg")
    one_sentence(tmp_path / "a\ud800b.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert "is a pipe" in one_sentence(tmp_path / "pipe.jpg")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".tif", ".gif", ".webp", ".bmp"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(saved(folder / f"a{suffix}", coloured(8, 8), exif=exif).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = folder / f"b{suffix}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        assert read_photo(file).shape[2] == 3
    except LikenessError as error:
        assert "b." in str(error) and "\n" not in str(error)


# --- masks


@pytest.mark.parametrize("paint", [0, 90, 255])
def test_a_mask_painted_as_opacity_is_its_opacity_whatever_the_paint(tmp_path, paint):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24], mask[8, 8:24] = 255, 128  # a soft edge
    rgba = np.dstack([np.full((32, 32, 3), paint, np.uint8), mask])
    assert np.array_equal(read_mask_file(saved(tmp_path / "a.mask.png", rgba)), mask)
    grey = Image.fromarray(rgba).convert("LA")
    grey.save(tmp_path / "b.mask.png")
    assert np.array_equal(read_mask_file(tmp_path / "b.mask.png"), mask)


def test_a_cut_out_face_is_its_own_mask(tmp_path):
    mask = np.zeros((24, 32), np.uint8)
    mask[6:18, 8:24] = 255
    assert np.array_equal(read_mask_file(saved(tmp_path / "a.mask.png", np.dstack([coloured(), mask]))), mask)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_a_mask_without_transparency_is_what_is_bright(tmp_path, mode):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    in_mode(mode, mask).save(tmp_path / "a.mask.png")
    assert np.array_equal(read_mask_file(tmp_path / "a.mask.png"), mask)


def test_a_black_and_white_mask_with_transparent_parts_is_refused(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[8:24, 8:24, :3] = 255
    rgba[:24, :, 3] = 255
    with pytest.raises(LikenessError, match=r"a\.mask\.png.*two different masks.*without transparency"):
        read_mask_file(saved(tmp_path / "a.mask.png", rgba))


# --- everywhere


def test_nothing_else_in_the_pack_opens_pictures():
    root = Path(photos.__file__).parents[1]
    opened = []
    for file in root.rglob("*.py"):
        where = file.relative_to(root).as_posix()
        if where.split("/")[0] in ("tests", "docs", "benchmarks") or where.startswith("."):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value) in ("Image", "pil"):
                opened.append(where)
    # A batch reads the header of what it uploads, and what its own servers made.
    assert sorted(opened) == ["batch/files.py", "batch/report.py", "batch/results.py", "faces/photos.py"]


@pytest.mark.parametrize("alpha", [251, 254])
def test_a_veil_that_nobody_sees_is_no_mask(tmp_path, alpha):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    rgba = np.dstack([mask, mask, mask, np.full_like(mask, alpha)])
    assert np.array_equal(read_mask_file(saved(tmp_path / "a.mask.png", rgba)) > 127, mask > 127)


@pytest.mark.parametrize("alpha", [100, 200])
def test_a_veil_over_everything_says_nothing(tmp_path, alpha):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    rgba = np.dstack([mask, mask, mask, np.full_like(mask, alpha)])
    with pytest.raises(LikenessError, match="equally transparent everywhere"):
        read_mask_file(saved(tmp_path / "a.mask.png", rgba))


def test_black_paint_under_a_veil_beside_opaque_white_is_two_masks(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    rgba = np.dstack([mask, mask, mask, np.where(mask > 0, 255, 200).astype(np.uint8)])
    with pytest.raises(LikenessError, match="two different masks"):
        read_mask_file(saved(tmp_path / "a.mask.png", rgba))


def test_a_picture_with_nothing_above_zero_is_not_read_as_black(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((20, 20), -0.5, np.float32)).save(tmp_path / "dark.tif")
    with pytest.raises(LikenessError, match="nothing above zero"):
        read_photo(tmp_path / "dark.tif")
