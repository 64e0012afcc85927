"""FastComposer's networks and references beside the golden cases."""

from __future__ import annotations

import pytest
import torch
from helpers import fastcomposer as made

from likeness.adapters.fastcomposer import SubjectEncoder, fuse_marked
from likeness.adapters.fastcomposer.references import NOISE_LEVELS, cut_out, noise, on_background, reference
from likeness.adapters.networks import FuseModule


def fuse(dim: int = 8) -> FuseModule:
    torch.manual_seed(0)
    return FuseModule(dim)


def test_the_kth_mark_takes_the_kth_subject_of_its_own_text():
    module, states, subjects = fuse(), torch.randn(2, 6, 8), torch.randn(2, 3, 1, 8)
    marks = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]])
    found = fuse_marked(module, states, marks, subjects, torch.tensor([2, 1]))
    for row, place, number in ((0, 1, 0), (0, 3, 1), (1, 4, 0)):
        torch.testing.assert_close(found[row, place], module(states[row, place], subjects[row, number, 0]))
    assert torch.equal(found[marks == 0], states[marks == 0])


def test_texts_without_subjects_and_extra_marks_stay():
    module, states = fuse(), torch.randn(2, 4, 8)
    marks = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]])
    found = fuse_marked(module, states, marks, torch.randn(2, 2, 1, 8), torch.tensor([1, 0]))
    assert torch.equal(found[1], states[1]) and torch.equal(found[0, 2], states[0, 2])
    assert not torch.equal(found[0, 1], states[0, 1])


def test_the_given_states_are_left_and_gradients_reach_both_sides():
    module, states = fuse(), torch.randn(1, 4, 8, requires_grad=True)
    subjects, before = torch.randn(1, 1, 1, 8, requires_grad=True), states.detach().clone()
    fuse_marked(module, states, torch.tensor([[0, 1, 0, 0]]), subjects, torch.tensor([1]))[..., :3].sum().backward()
    assert torch.equal(states.detach(), before)
    assert states.grad is not None and subjects.grad is not None and bool(subjects.grad.any())


def test_an_encoder_reads_images_of_any_size():
    encoder = SubjectEncoder(
        {key: value for key, value in made.encoder(64).items() if "position_ids" not in key}
    ).eval()  # fmt: skip
    with torch.no_grad():
        for height, width in ((28, 28), (40, 31), (9, 70)):
            assert encoder.image_encoder(torch.rand(2, 3, 3, height, width)).shape == (2, 3, 1, 64)


# References -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 5), (5, 8), (64, 30)])
def test_a_reference_is_padded_never_cropped(height, width):
    square = reference(torch.ones(1, height, width, 3), 32)
    assert square.shape == (1, 3, 32, 32)
    middle = square[0, 0, 16, 16]
    assert middle > 0.99
    if height != width:
        long_side, ends = (square[0, 0, :, 16], square[0, 0, 16]) if height > width else (
            square[0, 0, 16], square[0, 0, :, 16]
        )  # fmt: skip
        assert bool((long_side > 0.9).all()) and ends[0] < 0.5 and ends[-1] < 0.5


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_images_and_alpha_are_images(channels):
    assert reference(torch.rand(2, 9, 7, channels), 16).shape == (2, 3, 16, 16)


def test_background_noise_never_is_white_and_is_a_seed_s_own():
    one = noise(64, 64, torch.Generator().manual_seed(1))
    assert one.shape == (1, 64, 64, 3) and round(float(one.max()) * 255) == NOISE_LEVELS - 1
    assert torch.equal(one, noise(64, 64, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, noise(64, 64, torch.Generator().manual_seed(2)))


def test_a_subject_is_cut_out_of_its_own_noise():
    image, background = torch.ones(1, 6, 8, 3), torch.zeros(1, 6, 8, 3)
    mask = torch.zeros(1, 6, 8)
    mask[:, 2:4, 3:5] = 1
    cut = cut_out(image, mask, background, (2, 1, 6, 5))
    assert cut.shape == (1, 4, 4, 3) and cut.sum() == 2 * 2 * 3
    assert torch.equal(on_background(image, mask * 0.5, background), mask[..., None].expand(-1, -1, -1, 3) * 0.5)
