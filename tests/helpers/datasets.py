"""Datasets of noise with masks, captions and keypoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from likeness.training.data.dataset import Dataset, DatasetKind, DatasetPicture

SIDE = 64


def dataset(kind=DatasetKind.PERSON, trigger="ohwx", count=2, **changes) -> Dataset:
    def sample(number):
        rng = np.random.default_rng(number)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[16:48, 16:48] = 255
        caption = (
            f"a photo of a {trigger} person" if kind is DatasetKind.PERSON else f"a photo in the style of {trigger}"
        )
        five = np.array([(24, 26), (40, 26), (32, 34), (26, 41), (38, 41)], np.float32)
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return replace(DatasetPicture(f"{number}.png", pixels, mask, caption, (SIDE, SIDE), keypoints=five), **changes)

    return Dataset(kind, trigger, "person", tuple(sample(number) for number in range(count)))


STYLE = dataset(DatasetKind.STYLE, "mystyle")


def reading(folder: str, resolution: int = SIDE) -> dict[str, object]:
    """Inputs of Portrait Dataset that take every photo of a folder in the host's input as it is."""
    return {
        "kind": "person",
        "trigger_word": "ohwx",
        "class_word": "person",
        "resolution": resolution,
        "framing": "largest square",
        "unfit": "keep",
        "masks": "ellipse",
        "folder": folder,
        "save_as": "",
        "templates": "",
        "smallest_face": 0,
        "least_sharpness": 0.0,
        "outlier_threshold": -1.0,
    }
