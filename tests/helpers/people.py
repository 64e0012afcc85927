"""People without a detector, and encoders of images that cost nothing: what adapters are trained on in tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from helpers import official, photomaker
from helpers import pulid as helper
from likeness.adapters.clip_vision import ClipFeatures, EncoderSize
from likeness.adapters.eva_clip import EvaEncoder, build_eva
from likeness.faces import Face, FaceAnalysis
from likeness.faces.align import ARCFACE
from likeness.faces.detection import Detection
from likeness.training.base.lora import Reach, lora_targets
from likeness.training.data.dataset import Frame
from likeness.training.data.people import FramedPhoto, People, PersonPhoto
from likeness.training.data.photo_files import Photo
from likeness.training.materials import PeopleMaterials
from likeness.weights.lora import LoraPair
from likeness.weights.lora_files import kohya_unet_names, kohya_weights

SIDE = 32
KEYPOINTS = np.array([(11, 12), (20, 12), (16, 17), (12, 21), (19, 21)], np.float32)


def person_photo(person: str, number: int, side: int = SIDE, width: int = 16) -> PersonPhoto:
    """Noise with a face in the middle, and a mask of the figure; a person's embeddings are alike."""
    random = np.random.default_rng([number, *person.encode()])
    pixels = random.integers(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 8 :, side // 4 : 3 * side // 4] = 255
    own = np.random.default_rng(list(person.encode())).standard_normal(width)
    scale = side / SIDE
    face = Face(
        np.array([8, 8, 24, 24], np.float32) * scale,
        0.9,
        KEYPOINTS * scale,
        (10 * own + random.standard_normal(width)).astype(np.float32),
        "test",
    )
    photo = Photo(f"{person}/{number}.png", pixels, f"a photo of a person {number}", mask)
    example = FramedPhoto(photo, Frame(0, 0, side, side, (side, side)), (side, side), photo.caption or "")
    return PersonPhoto(person, example, face, f"{person}{number}")


def some_people(names: str = "ab", photos: int = 2, **given: Any) -> People:
    """A few photos of each."""
    return People(tuple(person_photo(name, n, **given) for name in names for n in range(photos)), recogniser="test")


class ToyClip:
    """A CLIP image encoder that projects the mean colours of four stripes."""

    size = EncoderSize(hidden=20, embed=12, image_size=28)

    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        stripes = pixels.unflatten(2, (4, -1)).mean((3, 4)).transpose(1, 2)  # (B, 4, 3)
        random = torch.Generator().manual_seed(5)
        hidden = stripes @ torch.randn(3, self.size.hidden, generator=random)
        return ClipFeatures(hidden.mean(1) @ torch.randn(self.size.hidden, self.size.embed, generator=random), hidden)

    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The same, louder with every layer; the last one is layer 17."""
        hidden = self.encode_pixels(pixels).penultimate
        return [hidden * (1 + (17 if layer < 0 else layer) / 10) for layer in layers]


def mean_colours(pictures: Tensor, keypoints: Tensor) -> Tensor:
    """Stands in for a recogniser with gradient: the colours around each keypoint, (batch, 15)."""
    crops = ARCFACE.crops(pictures, keypoints)
    places = [(int(y) // 16 * 16, int(x) // 16 * 16) for x, y in ARCFACE.points]
    return torch.cat([crops[:, :, y : y + 16, x : x + 16].mean((2, 3)) for y, x in places], 1) - 0.5


@functools.cache
def toy_eva() -> EvaEncoder:
    return build_eva(helper.eva())


def toy_clip_file(file: Path) -> Path:
    """A CLIP image encoder of two layers, as transformers writes it."""
    make = official.Maker(3)
    photomaker.tower(make, photomaker.TOWER)
    make.linear("visual_projection", 9, photomaker.TOWER["width"], bias=False)
    save_file(make.weights, file)
    return file


def people_materials(people: People | None = None, **given: Any) -> PeopleMaterials:
    """What every adapter's training could ask for."""
    usual: dict[str, Any] = {
        "clip": ToyClip(),
        "eva": toy_eva(),
        "parse": lambda crops: torch.ones(crops.shape[:3], dtype=torch.uint8),
        "measure": mean_colours,
        "detect": lambda picture: KEYPOINTS,
    }
    return PeopleMaterials(people or some_people(), **{**usual, **given})


def few_step_lora(unet: Any, file: Path, rank: int = 2) -> Path:
    """A LoRA with kohya's keys that changes the whole UNet a little."""
    torch.manual_seed(7)
    pairs = {}
    for path in lora_targets(unet, Reach.EVERYTHING):
        weight = unet.get_submodule(path).weight
        shape = (rank, *weight.shape[1:])
        up = (len(weight), rank, *[1] * (weight.ndim - 2))
        pairs[path] = LoraPair(0.1 * torch.randn(shape), 0.1 * torch.randn(up))
    save_file(kohya_weights(pairs, kohya_unet_names(unet)), file)
    return file


# Folders of people ----------------------------------------------------------------------------------------------------


class ByColour:
    """Finds a face in the middle of every photo unless the pixel there is black, two where it is white. An embedding is
    the pixel's colour."""

    name = "colours"
    threshold = 0.5
    sizes = (640,)

    def detect(self, image: np.ndarray, size: int) -> list[Detection]:
        colour = image[image.shape[0] // 2, image.shape[1] // 2].astype(int).sum()
        if colour == 0:
            return []
        middle = image.shape[0] / 2
        points = middle + np.array([(-15, -10), (15, -10), (0, 5), (-12, 20), (12, 20)], np.float32)
        box = np.array([middle - 40, middle - 40, middle + 40, middle + 40], np.float32)
        face = Detection(box, 0.9, points)
        return [face] if colour < 3 * 255 else [face, Detection(box + 60, 0.8, points + 60)]

    def embed(self, photo: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        return photo[80, 80].astype(np.float32) - 128


ANALYSIS: Any = FaceAnalysis("colours", ByColour(), ByColour())  # type: ignore[arg-type]
RED, GREEN, NOBODY, TWO = (250, 10, 10), (10, 250, 10), (0, 0, 0), (255, 255, 255)


def put(path: Path, colour: tuple[int, int, int], caption: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path)) + sum(map(ord, path.stem))).integers(0, 256, (160, 160, 3), np.uint8)
    noise[80, 80] = colour
    Image.fromarray(noise).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)
