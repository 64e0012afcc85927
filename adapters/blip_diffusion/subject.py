"""What a user gives of subjects: images with the words for them, cut out where wanted, and how they are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from ...checks import as_mask, check_number, require_painted
from ...errors import LikenessError
from ...faces.identity import Identity
from ..image_prep import Crop, pixel_values, to_rgb
from .words import WordPieces, clean

OPTIONS_NODE = "BLIP-Diffusion Options"
PERSON = "person"  # the word for an identity, where none is entered
REPEATS = 20


class Background(Enum):
    """What stands around a subject that is cut out; the value is the name a user chooses."""

    WHITE = "white"
    GREY = "grey"
    BLACK = "black"
    NOISE = "noise"

    def like(self, images: Tensor) -> Tensor:
        """The background of these images, the same in every run."""
        if self is Background.NOISE:
            return torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
        shade = {Background.WHITE: 1.0, Background.GREY: 0.5, Background.BLACK: 0.0}[self]
        return torch.full_like(images, shade)


@dataclass(frozen=True, eq=False)
class BlipDiffusionOptions:
    """Everything a user can set beside strength and window; the defaults are those of the official code.

    images: shown in place of the first identity's crops, each (n, H, W, 3 | 4). mask: (m, H, W), 1 where the subject
    is. category: what the images show, one word for all or one for each, separated by commas. target: what the prompt
    is about, "" for the category. ratios: how much each image or identity counts, () for all alike.
    """

    category: str = ""
    target: str = ""
    repeats: int = REPEATS
    prompt_strength: float = 1.0
    crop: Crop = Crop.CENTRE
    ratios: tuple[float, ...] = ()
    images: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    background: Background = Background.WHITE

    def __post_init__(self) -> None:
        check_number(self.repeats, "The number of repeats", 1, 1000)
        check_number(self.prompt_strength, "The prompt strength", 0, 100)
        for ratio in self.ratios:
            check_number(ratio, "The ratio", 0)
        if self.ratios and not sum(self.ratios) > 0:
            raise LikenessError("All ratios are 0, so that nothing is shown: give one of them more.")
        if self.times < 1:
            raise LikenessError(
                f"The prompt strength {self.prompt_strength:g} times {self.repeats} repeats is less than 1, which "
                "leaves no prompt: raise one of them."
            )

    @property
    def times(self) -> int:
        """How often the prompt stands in the window."""
        return int(self.prompt_strength * self.repeats)

    @property
    def categories(self) -> tuple[str, ...]:
        """The words for what is shown."""
        return tuple(word.strip() for word in self.category.split(",") if clean(word))


@dataclass(frozen=True, eq=False)
class Shown:
    """One image, or one person's: pixels (n, 3, S, S), and how much each of them counts (n,), together 1."""

    name: str
    pixels: Tensor
    weights: Tensor
    category: str


def shown(options: BlipDiffusionOptions, people: Sequence[Identity], size: int) -> tuple[list[Shown], int]:
    """What is looked at, and how many of these are of the first subject: its images, or its identity.

    Raises LikenessError when the images have no word, or there are words for others than these.
    """
    images = _cut_out(options, size)
    pixels = [(f"image {number}", image.unsqueeze(0), torch.ones(1)) for number, image in enumerate(images, 1)]
    first = max(len(pixels), 1)
    for person in people[1:] if len(pixels) else people:
        crops = pixel_values(person.heads.float() / 255, size, options.crop)
        pixels.append((person.name, crops, person.weights / person.weights.sum()))
    words = options.categories or (() if len(images) else (PERSON,))
    if not words:
        raise LikenessError(
            f"The images have no word for what they show: enter one, such as dog, as the category of {OPTIONS_NODE}."
        )
    if len(words) not in (1, len(pixels)):
        raise LikenessError(
            f"There are {len(words)} categories ({', '.join(words)}) for {len(pixels)} images or identities: enter one "
            "for all, or one for each."
        )
    words = words * len(pixels) if len(words) == 1 else words
    return [Shown(*one, word) for one, word in zip(pixels, words, strict=True)], first


def _cut_out(options: BlipDiffusionOptions, size: int) -> Tensor:
    """All images as pixel values; what is masked, or transparent, is the background."""
    if not options.images:
        return torch.zeros(0, 3, size, size)
    masks = None if options.mask is None else as_mask(options.mask, "The mask of the subject")
    if masks is not None:
        require_painted(masks, "The mask of the subject")
    count = sum(len(images) for images in options.images)
    if masks is not None and len(masks) not in (1, count):
        raise LikenessError(f"There are {len(masks)} masks for {count} images: connect one for all, or one for each.")
    found, number = [], 0
    for images in options.images:
        own = None if masks is None else masks if len(masks) == 1 else masks[number : number + len(images)]
        number += len(images)
        found.append(pixel_values(on_background(images, own, options.background), size, options.crop))
    return torch.cat(found)


def on_background(images: Tensor, mask: Tensor | None, background: Background) -> Tensor:
    """(n, H, W, 3 | 4) -> (n, H, W, 3); mask: (1 | n, h, w), 1 where the subject is"""
    part = None if mask is None else _resized(mask, images.shape[1:3])
    if images.ndim == 4 and images.shape[-1] == 4:
        alpha = images[..., 3].clamp(0, 1)
        part, images = alpha if part is None else part * alpha, images[..., :3]
    colours = to_rgb(images, "images")
    if part is None:
        return colours
    return torch.lerp(background.like(colours), colours, part.unsqueeze(-1).expand(len(colours), -1, -1, 1))


def _resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(mask.unsqueeze(1), tuple(size), mode="bilinear", antialias=True).squeeze(1).clamp(0, 1)


def ratios(options: BlipDiffusionOptions, count: int) -> Tensor:
    """How much each of `count` counts, together 1. LikenessError for ratios of another number."""
    given = options.ratios or (1.0,) * count
    if len(given) != count:
        raise LikenessError(
            f"There are {len(given)} ratios for {count} images or identities: enter one for each, or none."
        )
    shares = torch.tensor(given)
    return shares / shares.sum()


def unknown(words: WordPieces, category: str) -> bool:
    """Whether the vocabulary knows nothing of a word, as of most that are not English."""
    ids = words.ids(clean(category))[1:-1]
    return bool(ids) and set(ids) == {words.unknown}
