"""Folders of images with several people: what is read, how it is framed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import marked_photos as made
from helpers.small_world import sentence
from PIL import Image

from likeness.training.data.subject_augment import varied, zoomed
from likeness.training.data.subjects import read_subjects


def test_masks_go_with_the_marks_of_the_caption(tmp_path):
    photos = read_subjects(made.write(tmp_path), "img", 64)
    assert [len(photo.subjects) for photo in photos] == [1, 2, 0] and len(photos) == 3
    assert photos[1] is photos[1] and photos.stay
    both = photos[1]
    assert both.pixels.shape == (3, 64, 64) and both.caption == "a woman img and a man img"
    for subject, colour in zip(both.subjects, made.COLOURS, strict=True):
        assert subject.shown.shape == (64, 64) and subject.mask.all() and subject.image.shape == (1, 48, 32, 3)
        torch.testing.assert_close(subject.image[0, 5, 5], torch.tensor(colour) / 255)
        inside = both.pixels[:, subject.shown.bool()].mean(1)
        torch.testing.assert_close(inside, torch.tensor(colour) / 127.5 - 1, atol=0.2, rtol=0)
    assert "3 images with 3 people, up to 2 in one" in photos.report()


def test_the_official_layout_has_its_people_in_reading_order_and_no_dogs(tmp_path):
    photos = read_subjects(made.write_official(tmp_path), "img", 32)
    assert [photo.caption for photo in photos] == ["a man img in the rain", "a woman img with a dog and a man img"]
    first, second = photos[1].subjects
    for subject, colour in ((first, made.COLOURS[0]), (second, made.COLOURS[1])):
        torch.testing.assert_close(subject.image[0].mean((0, 1)), torch.tensor(colour) / 255, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (96, 96), (33, 200)])
def test_wide_images_lose_their_sides_and_tall_ones_get_bars(tmp_path, size):
    photo = read_subjects(made.write(tmp_path, ("a man img",), size), "img", 64)[0]
    assert photo.pixels.shape == (3, 64, 64)
    bars = (photo.pixels == -1).all(0).all(0)
    assert bool(bars[0]) == bool(bars[-1]) == (size[0] > size[1])
    assert set(photo.subjects[0].shown.unique().tolist()) <= {0.0, 1.0}


def test_sets_are_told_apart_by_what_is_in_them(tmp_path):
    made.write(tmp_path / "a")
    digest = read_subjects(tmp_path / "a", "img", 64).digest()
    assert digest == read_subjects(tmp_path / "a", "img", 64).digest()
    assert digest != read_subjects(tmp_path / "a", "img", 32).digest()
    (tmp_path / "a" / "0.txt").write_text("an old man img")
    assert digest != read_subjects(tmp_path / "a", "img", 64).digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "1.txt").write_text("a woman img"), "'1.png' has the marker 'img' 1 times, and there are 2"),
        (lambda f: (f / "1.txt").unlink(), "'1.png' has no caption"),
        (lambda f: (f / "1.1.mask.png").rename(f / "1.mask.png"), "'1.mask.png' has no number"),
        (lambda f: Image.new("L", (96, 96)).save(f / "0.1.mask.png"), "Mask 1 of '0.png' is black"),
        (lambda f: Image.new("L", (90, 96), 255).save(f / "0.1.mask.png"), "is 90 x 96 and the image 96 x 96"),
    ],
)
def test_what_does_not_go_together(tmp_path, change, said):
    change(made.write(tmp_path))
    assert said in sentence(lambda: list(read_subjects(tmp_path, "img", 64)))


def test_folders_that_are_none(tmp_path):
    assert "no folder" in sentence(read_subjects, tmp_path / "nowhere", "img", 64)
    assert str(tmp_path.name) in sentence(read_subjects, tmp_path, "img", 64)
    made.write_official(tmp_path / "official")
    (tmp_path / "official" / "00000" / "00000002.json").unlink()
    assert "'00000002'" in sentence(read_subjects, tmp_path / "official", "img", 64)
    np.save(tmp_path / "official" / "00000" / "00000001.npy", np.zeros(3), allow_pickle=False)


def test_variations_are_a_generator_s_own_and_leave_the_process_s_random_numbers():
    image = torch.rand(1, 20, 30, 3)
    before = torch.random.get_rng_state()

    def made_of(seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        square = zoomed(image, random)
        assert square.shape[1] <= 20
        return varied(torch.rand(1, 3, 48, 48, generator=random), random)

    assert torch.equal(made_of(1), made_of(1)) and not torch.equal(made_of(1), made_of(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(made_of(seed).min() >= 0 and made_of(seed).max() <= 1 for seed in range(20))
