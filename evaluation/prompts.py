"""Does the image follow the prompt?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..faces import unit

CLIP_WORDS = 77  # tokens that CLIP reads, start and end included
Attributes = Mapping[str, str]  # such as {"hat": "red", "glasses": "none"}
Classifier = Callable[[torch.Tensor], Sequence[Attributes]]


class ImageTextEncoder(Protocol):
    """CLIP, real or small: images and texts in one space."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, H, W, 3) RGB 0..1 to embeddings (n, D)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to embeddings (n, D)."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens the text has, start and end included."""
        ...


# --- CLIP


def plain_text(prompt: str, placeholder: str, noun: str) -> str:
    """The prompt with the person's placeholder or trigger word replaced by a noun that CLIP knows."""
    return re.sub(rf"(?<!\w){re.escape(placeholder)}(?!\w)", lambda _: noun, prompt) if placeholder else prompt


def clip_t(images: torch.Tensor, texts: Sequence[str], clip: ImageTextEncoder) -> torch.Tensor:
    """Cosine (n,) of each image (n, H, W, 3) with its text. A text that CLIP would cut off is the mean of its
    sentences' cosines."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts")
    if not len(images):
        return torch.zeros(0)
    sentences = [_sentences(text, clip) for text in texts]
    words = unit(clip.encode_texts([sentence for group in sentences for sentence in group]))
    pictures = unit(clip.encode_images(images))
    of_text = words.split([len(group) for group in sentences])
    return torch.stack([(group @ picture).mean() for group, picture in zip(of_text, pictures, strict=True)])


def _sentences(text: str, clip: ImageTextEncoder) -> list[str]:
    if clip.count_tokens(text) <= CLIP_WORDS:
        return [text]
    return [part for part in re.split(r"(?<=[.!?;。！？；])\s*", text) if part.strip()] or [text]


# --- attributes


def attributes(images: torch.Tensor, wanted: Sequence[Attributes], classifier: Classifier) -> torch.Tensor:
    """Share (n,) of each image's wanted attributes that the classifier recognises; NaN where nothing is wanted."""
    if len(images) != len(wanted):
        raise ValueError(f"{len(images)} images and {len(wanted)} lists of attributes")
    if not len(images):
        return torch.zeros(0)
    return torch.tensor(
        [
            sum(seen.get(name) == value for name, value in asked.items()) / len(asked) if asked else float("nan")
            for seen, asked in zip(classifier(images), wanted, strict=True)
        ]
    )


@dataclass(frozen=True)
class Forgetting:
    """What training on one person has cost images of everybody else. Both 0: nothing is forgotten."""

    attributes: float  # of the base model minus of the trained one: how much less prompts are obeyed
    clip_i: float  # 1 - mean cosine of the two models' images


def forget(
    trained: torch.Tensor,
    base: torch.Tensor,
    wanted: Sequence[Attributes],
    classifier: Classifier,
    encoder: Callable[[torch.Tensor], torch.Tensor],
) -> Forgetting:
    """`forget` of a trained method: images (n, H, W, 3) of class prompts without its word, and the base model's of
    the same prompts and seeds. `encoder` turns images into embeddings (n, D). NaN for no images."""
    lost = attributes(base, wanted, classifier) - attributes(trained, wanted, classifier)
    if not len(lost):
        return Forgetting(float("nan"), float("nan"))
    alike = (unit(encoder(trained)) * unit(encoder(base))).sum(1)
    return Forgetting(float(lost[~lost.isnan()].mean()), float(1 - alike.mean()))
