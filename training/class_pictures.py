"""Images of a class by the untouched model, which keep a class as it was while one of it is learned (prior
preservation). They are generated once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import LikenessError, logger
from ..faces import read_photo
from ..storage import set_aside, write_whole
from .base.model import BaseModel
from .data.examples import Example
from .previews import sample_pictures
from .recipes import prompts

if TYPE_CHECKING:
    from PIL.Image import Image

log = logger(__name__)


def class_size(photos: Sequence[Example]) -> tuple[int, int]:
    """(height, width) of the class pictures: that of the photos, which share every batch with them.

    Raises LikenessError where the photos have several, before any image is made.
    """
    prompts.require_photos(photos, "photo")
    return prompts.require_one_size(photos, "of the person", ", or set the prior's weight to 0")


def class_pictures(
    base: BaseModel,
    prompt: str,
    count: int,
    folder: Path,
    size: tuple[int, int],
    after_each: Callable[[], None] = lambda: None,
) -> list[Example]:
    """`count` images of the class by the untouched model, (height, width) in pixels; those in the folder are reused.

    One that cannot be read is set aside and generated again. Raises LikenessError when the folder cannot be written to,
    and when the model generates what is not an image.
    """
    found = []
    for number in range(count):
        path = folder / f"class_{number:05d}.png"
        try:
            picture = _kept(path)
            if picture is None:
                folder.mkdir(parents=True, exist_ok=True)
                picture = _painted(base, prompt, number, size)
                write_whole(path, partial(picture.save, format="png"))
        except OSError as error:
            raise LikenessError(
                f"The class image '{path}' could not be made or read ({error}): free some space, or delete it."
            ) from error
        pixels = np.asarray(picture.resize((size[1], size[0])), np.float32)
        found.append(Example(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous(), prompt))
        after_each()
    return found


def _kept(path: Path) -> Image | None:
    """A class image that was generated earlier, None where there is none."""
    from PIL import Image

    if not path.exists():
        return None
    try:
        return Image.fromarray(read_photo(path))
    except LikenessError as error:
        log.warning("%s It is now %s, and generated again.", error, set_aside(path).name)
        return None


def _painted(base: BaseModel, prompt: str, number: int, size: tuple[int, int]) -> Image:
    from PIL import Image

    picture = sample_pictures(base, [prompt], size, seed=number)[0]
    if not bool(torch.isfinite(picture).all()):
        raise LikenessError(
            "The model generates its class images with values that are not numbers: choose another precision (bf16 "
            "or float32), or another model."
        )
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
