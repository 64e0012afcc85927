"""Images of several people with the masks of each, as FastComposer is trained on them: noise, and whoever stands in it
is a rectangle of a colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from helpers import official, photomaker

CAPTIONS = ("a man img", "a woman img and a man img", "a house")
COLOURS = ((220, 40, 40), (40, 220, 40))


def painted(number: int, people: int, size: tuple[int, int] = (96, 96)) -> tuple[np.ndarray, list[np.ndarray]]:
    """(image (height, width, 3), a mask for each)"""
    height, width = size
    image = np.random.default_rng(number).integers(0, 120, (height, width, 3), np.uint8)
    masks = []
    for person in range(people):
        mask = np.zeros(size, bool)
        left = (person * width) // 2 + 4
        mask[height // 4 : height // 4 * 3, left : left + width // 3] = True
        image[mask] = COLOURS[person]
        masks.append(mask)
    return image, masks


def write(folder: Path, captions: tuple[str, ...] = CAPTIONS, size: tuple[int, int] = (96, 96)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions):
        image, masks = painted(number, caption.count("img"), size)
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
        for place, mask in enumerate(masks, 1):
            Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{number}.{place}.mask.png")
    return folder


def write_official(folder: Path, size: tuple[int, int] = (96, 128)) -> Path:
    """FastComposer's own layout: two images, the second with a dog and two people, told out of order."""
    (folder / "00000").mkdir(parents=True)
    (folder / "image_ids_train.txt").write_text("00000001\n00000002\n")
    about = [
        {"caption": "a man in the rain", "segments": [{"id": 7, "end": 5, "coco_label": "person"}]},
        {
            "caption": "a woman with a dog and a man",
            "segments": [
                {"id": 3, "end": 28, "coco_label": "person"},
                {"id": 4, "end": 18, "coco_label": "dog"},
                {"id": 9, "end": 7, "coco_label": "person"},
            ],
        },
    ]
    for number, told in enumerate(about, 1):
        people = sorted((s for s in told["segments"] if s["coco_label"] == "person"), key=lambda s: s["end"])
        image, masks = painted(number, len(people), size)
        labels = np.zeros(size, np.int32)
        for segment, mask in zip(people, masks, strict=True):
            labels[mask] = segment["id"]
        stem = folder / "00000" / f"0000000{number}"
        Image.fromarray(image).save(stem.with_suffix(".jpg"), quality=100)
        np.save(stem.with_suffix(".npy"), labels)
        stem.with_suffix(".json").write_text(json.dumps(told))
    return folder


def clip(file: Path, dim: int = 24) -> Path:
    """A CLIP image encoder of two layers, with a projection as wide as the text."""
    make = official.Maker(3)
    photomaker.tower(make, photomaker.TOWER)
    make.linear("visual_projection", dim, photomaker.TOWER["width"], bias=False)
    save_file(make.weights, file)
    return file
