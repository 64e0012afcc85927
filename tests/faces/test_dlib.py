"""dlib's recogniser without dlib: the reader of its format, the network, and the released weights where they are."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlib_files import integer, recogniser_bytes, write_recogniser
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import load_recogniser_module
from likeness.faces.align import Template
from likeness.faces.dlib_centre import CENTRE
from likeness.faces.dlib_file import _integer, read_dlib
from likeness.faces.dlib_resnet import CHIP, MEAN_RGB, dlib_resnet
from likeness.faces.recognition import TorchRecogniser


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    path = tmp_path_factory.mktemp("dlib") / "small.dat"
    return path, write_recogniser(path)


@given(st.integers(-(2**40), 2**40))
def test_integers_are_read_as_they_are_written(value):
    assert _integer(b"x" + integer(value) + b"y", 1) == (value, 1 + len(integer(value)))


def test_every_layer_is_read_in_order_and_to_the_last_number(small):
    path, tensors = small
    layers = read_dlib(path)
    held = [layer for layer in layers if len(layer.values)]
    assert [layer.kind for layer in held] == ["con", "affine"] * 9 + ["fc"]
    for layer, tensor in zip(held, tensors, strict=True):
        np.testing.assert_array_equal(layer.values, tensor.astype(np.float32))
    assert [layer.kind for layer in layers].count("add_prev") == 4 and held[-1].outputs == 128


def plain(tensors: list[np.ndarray], x: torch.Tensor, widths=(4, 8)) -> torch.Tensor:
    """The network written as its formulas, without modules."""
    rows = [torch.from_numpy(tensor).float() for tensor in tensors]

    def scaled(x: torch.Tensor, width: int, side: int, stride: int) -> torch.Tensor:
        filters, affine = rows.pop(0), rows.pop(0)
        weight, bias = filters[:-width].reshape(width, -1, side, side), filters[-width:]
        y = F.conv2d(x, weight, bias, stride, padding=0 if stride == 2 else side // 2)
        return y * affine[:width, None, None] + affine[width:, None, None]

    x = (x - torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1)) / 256
    x = F.max_pool2d(F.relu(scaled(x, widths[0], 7, 2)), 3, 2)
    for width in widths:
        for stride in (2, 1):
            short = F.avg_pool2d(x, 2) if stride == 2 else x
            y = scaled(F.relu(scaled(x, width, 3, stride)), width, 3, 1)
            both = torch.zeros(len(x), width, *(max(a, b) for a, b in zip(y.shape[2:], short.shape[2:], strict=True)))
            both[:, :, : y.shape[2], : y.shape[3]] += y
            both[:, : short.shape[1], : short.shape[2], : short.shape[3]] += short
            x = F.relu(both)
    return x.mean((2, 3)) @ rows.pop(0).reshape(widths[-1], -1)


@pytest.mark.parametrize("side", [150, 149, 64])
def test_the_network_is_its_formulas_at_any_size(small, side):
    path, tensors = small
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 255
    torch.testing.assert_close(dlib_resnet(path)(x), plain(tensors, x), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_picture_and_no_weight(small):
    recogniser = TorchRecogniser(load_recogniser_module(small[0]))
    pictures = torch.rand(1, 3, 200, 220, requires_grad=True)
    points = torch.from_numpy(CHIP.points)[None] + 20
    recogniser.measure(pictures, points).square().sum().backward()
    assert pictures.grad is not None and bool(pictures.grad[0, :, 90, 90].abs().sum() > 0)
    assert not any(parameter.requires_grad for parameter in recogniser.module.parameters())
    assert not recogniser.module.train().training


def test_pictures_and_photos_give_one_embedding_and_it_is_counted_from_the_centre(small):
    module = load_recogniser_module(small[0])
    recogniser = TorchRecogniser(module)
    photo = np.random.default_rng(0).integers(0, 256, (220, 240, 3), dtype=np.uint8)
    points = CHIP.points * 1.2 + 25
    embedding = recogniser.embed(photo, points)
    pictures = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    seen = recogniser.measure(pictures, torch.from_numpy(points)[None])[0].numpy()
    np.testing.assert_allclose(embedding, seen, atol=2e-2)  # crops of photos are rounded to whole grey levels
    chip = torch.from_numpy(CHIP.crop(photo, points)).permute(2, 0, 1)[None].float()
    np.testing.assert_allclose(embedding, dlib_resnet(small[0])(chip)[0].numpy() - CENTRE, atol=1e-4)
    assert recogniser.name == "dlib" and module.template is CHIP


def test_the_identity_loss_sees_the_chip_and_decodes_all_of_it(small):
    """dlib's chip reaches further below the chin than ArcFace's crop."""
    from likeness.training.objectives.identity import arcface_measure, face_window, identity_of_latents

    recogniser = TorchRecogniser(load_recogniser_module(small[0]))
    pictures, points = torch.rand(1, 3, 256, 256), torch.from_numpy(CHIP.points)[None].float() + 40
    measure = arcface_measure(recogniser.module)
    torch.testing.assert_close(measure(pictures, points), recogniser.measure(pictures, points))
    plain, wide = (face_window(points[0], (32, 32), 8, 0, *which) for which in ((), (CHIP,)))
    assert wide.bottom > plain.bottom and wide.bottom >= (40 + 149) / 8
    for one in (measure, recogniser.measure):
        whole, window = (_loss(identity_of_latents, pictures, points[0], one, margin) for margin in (None, 0))
        torch.testing.assert_close(whole, window, atol=1e-3, rtol=1e-3)


def _loss(identity_of_latents, pictures, points, measure, margin):
    """The loss of latents that are the image's pixels, in cells of 8."""
    from likeness.training.objectives.identity import Decoder, LikenessTarget

    decoder = Decoder(lambda z: F.pixel_shuffle(z, 8) * 2 - 1, 1.0, 8)
    return identity_of_latents(
        F.pixel_unshuffle(pictures, 8), [LikenessTarget(points, torch.ones(128))], decoder, measure, margin
    )


# --- chips of large photos


def test_a_chip_of_a_large_photo_is_that_of_the_halved_photo():
    photo = np.random.default_rng(1).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    points = CHIP.points * 3 + np.array([120.0, 80.0])  # a scale of 1/3: halved once
    halved = photo.reshape(450, 2, 500, 2, 3).mean((1, 3)).round().astype(np.uint8)
    expected = Template(CHIP.points, 150).crop(halved, (points - 0.5) / 2)
    assert np.abs(CHIP.crop(photo, points).astype(int) - expected).max() <= 1
    plain = Template(CHIP.points, 150).crop(photo, points)
    assert CHIP.crop(photo, points).std() < 0.75 * plain.std()  # every pixel of noise is the mean of four


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_a_chip_of_a_small_photo_is_a_plain_crop(scale):
    photo = np.random.default_rng(2).integers(0, 256, (300, 320, 3), dtype=np.uint8)
    points = CHIP.points * scale + 12
    np.testing.assert_array_equal(CHIP.crop(photo, points), Template(CHIP.points, 150).crop(photo, points))


# --- bad files


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"<html>not found</html>" * 50,
    "cut off": lambda content: content[: len(content) // 2],
    "bytes short": lambda content: content[:-20],
    "a tensor too long": lambda content: content.replace(
        b"con_4" + integer(2), b"con_4" + integer(2) + b"\x04\xff\xff\xff\x7f", 1
    ),
    "another version": lambda content: content.replace(b"con_4\x01\x02", b"con_4\x01\x07", 1),
    "no number": lambda content: (
        content[:-4] if not content else content.replace(b"con_4\x01\x02", b"con_4\x00\x02", 1)
    ),
    "a layer lost": lambda content: content.replace(b"affine_", b"bn_con_", 1),
    "the end lost": lambda content: content.replace(b"fc_2", b"xx_2", 1),
    "no blocks": lambda content: content.replace(b"add_prev_", b"add_none_"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_one_sentence(tmp_path, what):
    path = tmp_path / "bad.dat"
    path.write_bytes(DAMAGE[what](recogniser_bytes()[0]))
    with pytest.raises(LikenessError, match=r"bad\.dat .*(download it again|choose)") as caught:
        load_recogniser_module(path)
    assert "\n" not in str(caught.value)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    content, tensors = recogniser_bytes()
    path = tmp_path / "nan.dat"
    path.write_bytes(
        content.replace(tensors[1].astype("<f4").tobytes(), np.full_like(tensors[1], np.nan, "<f4").tobytes())
    )
    with pytest.raises(LikenessError, match=r"nan\.dat is damaged"):
        load_recogniser_module(path)


def test_other_files_of_dlib_and_missing_ones_are_named(tmp_path):
    (tmp_path / "shape_predictor_68_face_landmarks.dat").write_bytes(integer(1) * 200)
    with pytest.raises(LikenessError, match="not a recogniser of dlib's: choose dlib_face_recognition"):
        load_recogniser_module(tmp_path / "shape_predictor_68_face_landmarks.dat")
    with pytest.raises(LikenessError, match=re.escape(f"gone.dat is missing: put it into {tmp_path}")):
        load_recogniser_module(tmp_path / "gone.dat")
    write_recogniser(tmp_path / "wide.dat", outputs=64)
    with pytest.raises(LikenessError, match="has embeddings of width 64, and dlib's have 128"):
        load_recogniser_module(tmp_path / "wide.dat")


@given(st.data())
def test_no_damage_ends_in_a_traceback(tmp_path_factory, data):
    content = bytearray(recogniser_bytes(widths=(2,))[0])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("dlib") / "x.dat"
    path.write_bytes(content)
    with contextlib.suppress(LikenessError):
        load_recogniser_module(path)
