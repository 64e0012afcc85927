"""The miniature's face analysis: geometry with a detector that is told the answer, likeness with shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis, FrozenRecogniser
from likeness.faces.found import find_faces
from likeness.miniature.drawing.people import split_people
from likeness.miniature.drawing.renderer import render
from likeness.miniature.drawing.shots import Style, draw_shots
from likeness.miniature.models.backend import (
    PRESENT,
    MiniatureAnalysis,
    MiniatureDetector,
    MiniatureRecogniser,
    miniature_analysis,
    miniature_judge,
    observe,
)
from likeness.miniature.models.networks import RECOGNISER_CROP, build_recogniser, frozen
from likeness.miniature.models.weights import load_observer


class Spotter(nn.Module):
    """In place of the observer: the face is where the image is red, and certain when all of the disc is seen."""

    def forward(self, pictures):
        red = (pictures[:, 0] - pictures[:, 1]).clamp(0, 1)
        grid = (torch.arange(64) + 0.5) / 64
        mass = red.sum((1, 2)).clamp_min(1e-6)
        centre = torch.stack([(red.sum(1) * grid).sum(1) / mass, (red.sum(2) * grid).sum(1) / mass], 1)
        reach = torch.tensor([(-0.1, -0.1), (0.1, -0.1), (0, 0), (-0.1, 0.1), (0.1, 0.1), (0.2, 0.2), (-0.2, -0.2)])
        return {}, centre[:, None] + reach, mass / 10 - 5


def scene(width: int, height: int, x: int, y: int, side: int = 12) -> np.ndarray:
    photo = np.full((height, width, 3), 200, np.uint8)
    photo[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = (255, 0, 0)
    return photo


@pytest.fixture(scope="module")
def spotter() -> FaceAnalysis:
    torch.manual_seed(0)
    recogniser = MiniatureRecogniser(FrozenRecogniser(frozen(build_recogniser()), "test"), RECOGNISER_CROP)
    return MiniatureAnalysis("test", MiniatureDetector(Spotter()), recogniser)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "height", "x", "y"),
    [
        (64, 64, 30, 40),
        (128, 128, 90, 40),
        (200, 200, 60, 120),
        (96, 64, 80, 30),
        (64, 96, 20, 80),
        (300, 100, 150, 50),
    ],
)
def test_points_and_box_are_in_pixels_of_the_photo(spotter, width, height, x, y):
    [face] = spotter.find(scene(width, height, x, y, side=height // 5 // 2 * 2))
    assert face.keypoints.shape == (5, 2)
    np.testing.assert_allclose(face.keypoints[2], [x - 0.5, y - 0.5], atol=1.5)
    x1, y1, x2, y2 = face.box
    assert x1 < x < x2 and y1 < y < y2
    assert face.embedding.shape == (512,) and face.recogniser == "test"


def test_a_photo_without_a_face_is_explained_in_one_sentence(spotter):
    photo = np.full((50, 80, 3), 90, np.uint8)
    assert spotter.find(photo) == []
    with pytest.raises(LikenessError, match="No face of the miniature world was found in photo 2"):
        find_faces(spotter, [scene(128, 128, 60, 60, 24), photo])


def test_embeddings_do_not_depend_on_the_photos_size(spotter):
    small = (render(split_people("test", 1), draw_shots([3]), 64).rgb[0].numpy() * 255).astype(np.uint8)
    large = small.repeat(3, 0).repeat(3, 1)
    points = np.array([[22, 30], [42, 30], [32, 40], [25, 48], [39, 48]], np.float32)
    first = spotter.recogniser.embed(small, points)
    second = spotter.recogniser.embed(large, (points + 0.5) * 3 - 0.5)
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_measuring_has_gradient_to_the_pictures_and_none_to_the_network(spotter):
    pictures = torch.rand(2, 3, 128, 128, requires_grad=True)
    points = torch.tensor([[44.0, 60], [84, 60], [64, 80], [50, 96], [78, 96]]).expand(2, -1, -1)
    spotter.recogniser.measure(pictures, points).square().sum().backward()
    assert pictures.grad is not None and pictures.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None for p in spotter.recogniser.module.parameters())


def test_a_missing_weight_file_is_named(tmp_path: Path):
    with pytest.raises(LikenessError, match="safetensors"):
        miniature_analysis(tmp_path)


# --- with the shipped weights


@pytest.fixture(scope="module")
def album():
    """Twelve people who were never drawn for training, four photos each: (48, 128, 128, 3) uint8, and their points."""
    people = split_people("test", 12)[np.repeat(np.arange(12), 4)]
    batch = render(people, draw_shots(range(7000, 7048)).with_style(Style.PHOTO), 128)
    return (batch.rgb * 255).to(torch.uint8).numpy(), batch.keypoints.numpy()


def test_drawn_faces_are_found_where_they_are(album):
    pictures, keypoints = album
    sight = observe(miniature_analysis().detector.observer, torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)  # type: ignore[attr-defined]
    assert (sight.scores > 0.5).float().mean() > 0.95
    assert (sight.keypoints - torch.from_numpy(keypoints)).norm(dim=-1).mean() < 3


@pytest.mark.parametrize("load", [miniature_analysis, miniature_judge])
def test_a_person_is_more_alike_to_oneself_than_to_others(album, load):
    analysis = load()
    rows = [analysis.recogniser.embed(picture, points) for picture, points in zip(*album, strict=True)]
    unit = torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=-1)
    alike = unit @ unit.T
    person = torch.arange(12).repeat_interleave(4)
    same = (person[:, None] == person) & ~torch.eye(48, dtype=torch.bool)
    assert alike[same].mean() > alike[person[:, None] != person].mean() + 0.3


def test_people_of_the_real_world_are_not_of_this_one():
    import skimage.data

    analysis = miniature_analysis()
    for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()):
        with pytest.raises(LikenessError, match="No face of the miniature world was found"):
            find_faces(analysis, [photo])


def test_a_hundred_real_heads_that_fill_the_frame_are_not_of_this_world():
    import skimage.data

    grey = torch.from_numpy(skimage.data.lfw_subset()[:100]).float()[:, None].expand(-1, 3, -1, -1)
    heads = torch.nn.functional.interpolate(grey, size=(64, 64), mode="bicubic").clamp(0, 1)
    for tint in ((1.0, 1.0, 1.0), (1.0, 0.8, 0.7)):
        scores = observe(load_observer(), heads * torch.tensor(tint).view(3, 1, 1)).scores
        assert float(scores.max()) < PRESENT


def test_a_group_of_real_people_is_not_of_this_world():
    from PIL import Image

    insightface = pytest.importorskip("insightface")
    with Image.open(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    with pytest.raises(LikenessError, match="No face of the miniature world was found"):
        find_faces(miniature_analysis(), [photo])
