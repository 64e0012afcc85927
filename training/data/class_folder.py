"""Images of a class from a folder: what a training keeps as it was, each with its caption where it has one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError, logger
from .examples import Example
from .photo_files import files_below, read_folder

log = logger(__name__)

PATHS, CAPTIONS = "images.txt", "caption.txt"  # as the official downloader writes them, line by line


def class_examples(folder: Path, side: int, caption: str) -> list[Example]:
    """The images of a folder with `side` pixels on their shorter side. caption: of those without one beside them.

    Raises LikenessError when the folder is not there or holds no image.
    """
    if not folder.is_dir():
        raise LikenessError(
            f"There is no folder {str(folder)!r} with class images: put them there, or leave class_folder empty."
        )
    found, said = read_folder(folder), _listed(folder)
    for sentence in found.unreadable:
        log.warning("[likeness] %s", sentence)
    examples = []
    for photo in found.photos:
        pixels = torch.from_numpy(photo.pixels).permute(2, 0, 1).float() / 127.5 - 1
        words = photo.caption or said.get(Path(photo.name).name) or caption
        examples.append(Example(_shorter_side(pixels, side), words, name=photo.name))
    return examples


def _shorter_side(pixels: Tensor, side: int) -> Tensor:
    height, width = pixels.shape[-2:]
    scale = side / min(height, width)
    size = max(side, round(height * scale)), max(side, round(width * scale))
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(-1, 1)


def _listed(folder: Path) -> dict[str, str]:
    """Captions by the name of the image, from the official pair of lists."""
    for place in (folder, folder.parent):
        paths, captions = place / PATHS, place / CAPTIONS
        if paths.is_file() and captions.is_file():
            lines = [file.read_text(encoding="utf-8", errors="replace").splitlines() for file in (paths, captions)]
            return {Path(path.strip()).name: said.strip() for path, said in zip(*lines, strict=False)}
    return {}


def folder_digest(folder: Path) -> str:
    """Tells folders apart by their files; '' for one that is not there."""
    digest = hashlib.sha256()
    if not folder.is_dir():
        return ""
    for file in sorted(files_below(folder)):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def cropped(example: Example, random: torch.Generator) -> Example:
    """A square of it, wherever chance puts it."""
    height, width = example.size
    side = min(height, width)
    top, left = (int(torch.randint(extent - side + 1, (), generator=random)) for extent in (height, width))
    return Example(
        example.pixels[:, top : top + side, left : left + side].contiguous(), example.caption, name=example.name
    )
