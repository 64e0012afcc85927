"""The closed-form codec of the miniature world: small latents of unit variance that keep a face."""

from __future__ import annotations

import pytest
import torch

from likeness.errors import LikenessError
from likeness.miniature.drawing.people import split_people
from likeness.miniature.drawing.renderer import render
from likeness.miniature.drawing.shots import draw_shots
from likeness.miniature.models.latents import load_codec


def test_people_never_fitted_come_back_recognisable():
    pictures = render(split_people("test", 32), draw_shots(range(32)), 128).rgb.movedim(-1, 1)
    codec = load_codec()
    latents = codec.encode(pictures)
    assert latents.shape == (32, 16, 16, 16)
    assert 0.5 < float(latents.std()) < 2
    error = (codec.decode(latents) - pictures).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 27  # decibels; 28.8 over 256 images of every style


def test_sides_that_eight_does_not_divide_are_refused():
    with pytest.raises(LikenessError, match=r"70x64"):
        load_codec().encode(torch.zeros(1, 3, 64, 70))


def test_a_file_that_is_no_codec_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(LikenessError, match=r"a\.safetensors"):
        load_codec(tmp_path / "a.safetensors")
