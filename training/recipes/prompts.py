"""What training prompts say, and how samples are drawn from photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...errors import LikenessError
from ..data.captions import check_captions, fill_template, parse_templates
from ..data.examples import Example
from ..recipe import Sample, epochs

Prompts = Callable[[Example, torch.Generator], str]


def random_choice(templates: Sequence[str], random: torch.Generator) -> str:
    """One of them, all alike likely."""
    return templates[int(torch.randint(len(templates), (), generator=random))]


def happens(probability: float, random: torch.Generator) -> bool:
    """True that often."""
    return bool(torch.rand((), generator=random) < probability)


def from_templates(templates: Sequence[str], word: str) -> Prompts:
    """A template at random with the word in it. Raises LikenessError when one has no place for it, or there is none."""
    parse_templates("\n".join(templates))
    if not templates:
        raise LikenessError(
            f"There is no template for '{word}': write at least one, such as 'a photo of a {{}} person'."
        )
    return lambda _, random: fill_template(random_choice(templates, random), word)


def from_captions(photos: Sequence[Example], word: str, otherwise: Prompts) -> Prompts:
    """Every photo's own caption; of photos without one, what is said `otherwise`.

    Raises LikenessError when a caption does not name the word.
    """
    named = [(photo.name or f"photo {number}", photo.caption) for number, photo in enumerate(photos, 1)]
    check_captions([(name, caption) for name, caption in named if caption], word)
    return lambda photo, random: photo.caption or otherwise(photo, random)


@dataclass(frozen=True)
class Photos:
    """A stream of photos with prompts: each once per epoch, mirrored with probability `flip`."""

    examples: Sequence[Example]
    prompts: Prompts
    seed: int = 0
    flip: float = 0.0

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        example = self.examples[epochs(len(self.examples), self.seed, n)]
        return Sample(example, self.prompts(example, random), happens(self.flip, random))


@dataclass(frozen=True)
class TaughtConcept:
    """One of the things that a training learns together: its photos, others of its class, and what is said of each."""

    photos: Sequence[Example]
    said: Prompts
    class_photos: Sequence[Example] = ()
    class_said: Prompts | None = None


def joint(concepts: Sequence[TaughtConcept], seed: int = 0, flip: float = 0.0) -> list[Photos]:
    """The streams of a joint training (Custom Diffusion, arXiv 2212.04488, section 3.2): all concepts' photos in one
    shuffled list, all class images, where there are any, in another."""
    streams = [_together([(concept.photos, concept.said) for concept in concepts], seed, flip)]
    classes = [(concept.class_photos, concept.class_said) for concept in concepts if concept.class_said is not None]
    if classes:
        streams.append(_together(classes, seed, flip))
    return streams


def _together(parts: Sequence[tuple[Sequence[Example], Prompts]], seed: int, flip: float) -> Photos:
    said = {example: prompts for examples, prompts in parts for example in examples}
    examples = [example for examples, _ in parts for example in examples]
    return Photos(examples, lambda example, random: said[example](example, random), seed, flip)


def require_photos(photos: Sequence[Example], what: str) -> None:
    """Raises LikenessError when there are none, or when they are of no size a network could take."""
    if not photos:
        raise LikenessError(f"There is no {what} to train on: add at least one.")
    for number, photo in enumerate(photos, 1):
        if photo.pixels.ndim != 3 or photo.pixels.shape[0] != 3 or any(side % 8 or side < 8 for side in photo.size):
            name = photo.name or f"{what} {number}"
            raise LikenessError(
                f"{name} is {tuple(photo.pixels.shape)}: give it three colours and sides that 8 divides."
            )


def require_one_size(photos: Sequence[Example], whose: str, otherwise: str = "") -> tuple[int, int]:
    """The size (height, width) of all. Raises LikenessError naming the sizes when there are several."""
    sizes = {photo.size for photo in photos}
    if len(sizes) > 1:
        raise LikenessError(
            f"The photos {whose} have different sizes ({', '.join(f'{w}x{h}' for h, w in sorted(sizes))}): crop them "
            f"all to one size{otherwise}."
        )
    return sizes.pop()
