"""Does the picture obey the prompt? And the prompts to ask with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from ..faces import unit

CLIP_WORDS = 77  # tokens that CLIP reads, start and end included
Attributes = Mapping[str, str]  # such as {"hat": "red", "glasses": "none"}
Classifier = Callable[[torch.Tensor], Sequence[Attributes]]


class ImageTextEncoder(Protocol):
    """CLIP, real or small: pictures and texts in one space."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (n, H, W, 3) RGB 0..1 to embeddings (n, D)."""
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
    """Cosine (n,) of each picture (n, H, W, 3) with its text. A text that CLIP would cut off is the mean of its
    sentences' cosines."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} pictures and {len(texts)} texts")
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


def clip_score(cosines: torch.Tensor) -> torch.Tensor:
    """What is called CLIPScore: 100 max(cosine, 0)."""
    return 100 * cosines.clamp(min=0)


def clip_t_directional(
    images: torch.Tensor,
    baseline: torch.Tensor,
    texts: Sequence[str],
    plain: Sequence[str],
    clip: ImageTextEncoder,
) -> torch.Tensor:
    """Cosine (n,) of (result - baseline) with (prompt - plain prompt): did the picture change as the words did."""
    seen = unit(clip.encode_images(images)) - unit(clip.encode_images(baseline))
    said = unit(clip.encode_texts(texts)) - unit(clip.encode_texts(plain))
    return (unit(seen) * unit(said)).sum(1)


# --- attributes


def attributes(images: torch.Tensor, wanted: Sequence[Attributes], classifier: Classifier) -> torch.Tensor:
    """Share (n,) of each picture's wanted attributes that the classifier recognises; NaN where nothing is wanted."""
    if len(images) != len(wanted):
        raise ValueError(f"{len(images)} pictures and {len(wanted)} lists of attributes")
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
    """What training on one person has cost pictures of everybody else. Both 0: nothing is forgotten."""

    attributes: float  # of the base model minus of the trained one: how much less prompts are obeyed
    clip_i: float  # 1 - mean cosine of the two models' pictures


def forget(
    trained: torch.Tensor,
    base: torch.Tensor,
    wanted: Sequence[Attributes],
    classifier: Classifier,
    encoder: Callable[[torch.Tensor], torch.Tensor],
) -> Forgetting:
    """`forget` of a trained method: pictures (n, H, W, 3) of class prompts without its word, and the base model's of
    the same prompts and seeds. `encoder` turns pictures into embeddings (n, D). NaN for no pictures."""
    lost = attributes(base, wanted, classifier) - attributes(trained, wanted, classifier)
    if not len(lost):
        return Forgetting(float("nan"), float("nan"))
    alike = (unit(encoder(trained)) * unit(encoder(base))).sum(1)
    return Forgetting(float(lost[~lost.isnan()].mean()), float(1 - alike.mean()))


def zero_shot(clip: ImageTextEncoder, alternatives: Mapping[str, Mapping[str, str]]) -> Classifier:
    """A classifier out of CLIP: of each attribute the value whose sentence lies nearest.

    `alternatives` such as {"hat": {"red": "a photo of a person in a red hat", "none": "a photo of a bareheaded
    person"}}.
    """

    def classify(images: torch.Tensor) -> list[dict[str, str]]:
        pictures = unit(clip.encode_images(images))
        found: list[dict[str, str]] = [{} for _ in images]
        for name, sentences in alternatives.items():
            values = list(sentences)
            best = (pictures @ unit(clip.encode_texts(list(sentences.values()))).T).argmax(1)
            for seen, index in zip(found, best.tolist(), strict=True):
                seen[name] = values[index]
        return found

    return classify


# --- prompts


class Kind(Enum):
    """What a prompt tests."""

    PLAIN = "plain"
    CLOTHES = "clothes"
    ACCESSORY = "accessory"
    CONTEXT = "context"
    ACTION = "action"
    EXPRESSION = "expression"
    POSE = "pose"
    AGE = "age"
    HAIR = "hair"
    LIGHT = "light"
    DISTANCE = "distance"
    STYLE = "style"  # reported apart: recognisers are brittle on drawings
    LONG = "long"
    TWO = "two people"
    THREE = "three people"
    NOBODY = "nobody"  # the person must not appear


@dataclass(frozen=True)
class Prompt:
    """`{person}` stands for the placeholder or class noun, `{person_2}` and `{person_3}` for further people."""

    kind: Kind
    text: str

    def of(self, *people: str) -> str:
        """The text with these words for the people."""
        names = {f"person_{number}" if number > 1 else "person": word for number, word in enumerate(people, 1)}
        return self.text.format(**names)


_ONE_PERSON = {
    Kind.PLAIN: [
        "a portrait photo of {person}",
        "{person} looking at the camera, grey studio background",
        "a passport photo of {person}",
    ],
    Kind.CLOTHES: [
        "{person} in a yellow raincoat",
        "{person} wearing a white chef's jacket",
        "{person} in a knitted green jumper",
        "{person} in a black evening suit",
    ],
    Kind.ACCESSORY: [
        "{person} with round tortoiseshell glasses",
        "{person} in a wide straw hat",
        "{person} with large red headphones",
    ],
    Kind.CONTEXT: [
        "{person} on a ferry deck, sea behind",
        "{person} in a greenhouse full of ferns",
        "{person} at a night market under paper lanterns",
        "{person} on a snowy mountain pass",
    ],
    Kind.ACTION: [
        "{person} pouring tea into a cup",
        "{person} playing the cello",
        "{person} carrying a bicycle up the stairs",
        "{person} holding a sleeping cat",
    ],
    Kind.EXPRESSION: [
        "{person} laughing out loud",
        "{person} frowning angrily",
        "{person} with raised brows and open mouth, surprised",
        "{person} with closed eyes, calm",
    ],
    Kind.POSE: [
        "profile photo of {person}, facing left",
        "{person} looking up at the sky",
        "{person} glancing back over the shoulder",
    ],
    Kind.AGE: ["{person} as a child of eight years", "{person} at eighty, white hair and deep wrinkles"],
    Kind.HAIR: ["{person} with short bleached hair", "{person} with long curly red hair"],
    Kind.LIGHT: [
        "{person} lit by a single candle",
        "{person} against the low evening sun, rim light",
        "{person} under blue neon light",
    ],
    Kind.DISTANCE: [
        "extreme close-up of the face of {person}",
        "full body photo of {person} walking through a long hall",
    ],
    Kind.STYLE: [
        "oil painting of {person}, visible brush strokes",
        "pencil sketch of {person} on rough paper",
        "marble bust of {person}",
    ],
    Kind.LONG: [
        "A quiet photo of {person} in the kitchen of an old farmhouse. Morning light falls through a small window onto "
        "a wooden table with flour, eggs and a bowl of cherries. {person} wears a blue apron over a striped shirt, "
        "with the sleeves rolled up. Copper pans hang on the wall behind, and a dog sleeps on the tiles. It was "
        "taken with a short telephoto lens, at eye level, with soft contrast and natural colours.",
        "{person} stands on the platform of a small railway station in the rain. A red umbrella, a leather suitcase "
        "and a long beige coat stand out against the grey. The clock shows ten past six. Puddles reflect the lamps, "
        "steam rises behind the last carriage, and a boy in a yellow cap waves from a window. The mood is tender, the "
        "grain is fine, and the far end of the platform dissolves in fog.",
    ],
    Kind.NOBODY: ["an empty wooden chair in a sunlit room"],
}
_SEVERAL = {
    Kind.TWO: [
        "{person} and {person_2} side by side in front of a brick wall",
        "{person} shaking hands with {person_2}",
        "{person} and {person_2} playing chess in a park",
        "{person} whispering to {person_2}",
        "{person} and {person_2} dancing at a wedding",
        "{person} in a red coat and {person_2} in a blue coat",
        "{person} with glasses, {person_2} with a hat",
        "{person} laughing, {person_2} serious",
        "{person} in front, {person_2} far behind",
        "{person} and {person_2} cooking together in a small kitchen",
        "{person} taking a photo of {person_2}",
        "{person} on the left and {person_2} on the right of a long table",
        "{person} teaching {person_2} to ride a bicycle",
        "oil painting of {person} and {person_2}",
    ],
    Kind.THREE: [
        "{person}, {person_2} and {person_3} on a park bench",
        "{person} standing between {person_2} and {person_3}",
        "{person}, {person_2} and {person_3} playing cards",
        "{person} on stage, {person_2} and {person_3} in the audience",
    ],
    Kind.NOBODY: ["two cups of coffee on a small table", "a street in the rain without any people"],
}


def _listed(texts: Mapping[Kind, Sequence[str]]) -> tuple[Prompt, ...]:
    return tuple(Prompt(kind, text) for kind, group in texts.items() for text in group)


PROMPTS = _listed(_ONE_PERSON)  # 40, of one person
PROMPTS_OF_SEVERAL = _listed(_SEVERAL)  # 20, of two and three
