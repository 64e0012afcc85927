"""Prompts that show what an identity should leave alone: style, attributes, light, composition, material, no one.

PuLID's alignment compares what the base model makes of them with and without a person. `{subject}` becomes a man, a
woman, a child or a person.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from ...errors import LikenessError

SLOT = "{subject}"
SUBJECTS = ("man", "woman", "child", "person")

_STYLES = (
    "an oil painting of a {subject}", "a watercolour of a {subject}", "a paper cut of a {subject}",
    "an ukiyo-e print of a {subject}", "pixel art of a {subject}", "a clay figure of a {subject}",
    "line art of a {subject}", "a comic panel with a {subject}", "a charcoal sketch of a {subject}",
    "a stained glass window of a {subject}", "a low poly render of a {subject}", "a linocut of a {subject}",
    "an anime still of a {subject}", "a mosaic of a {subject}", "a vintage travel poster with a {subject}",
    "a pencil drawing of a {subject}",
)  # fmt: skip
_PLACES = ("in a garden", "on a bridge at dusk", "in a crowded market")
_ATTRIBUTES = (
    "an old {subject} with grey hair", "a {subject} with long red hair", "a bald {subject}", "a {subject} with a beard",
    "a {subject} with heavy make-up", "a laughing {subject}", "a crying {subject}", "an angry {subject}",
    "a {subject} with round glasses", "a {subject} in a motorcycle helmet", "a {subject} with blue hair",
    "a {subject} with freckles", "a sleeping {subject}", "a {subject} with a white hat", "a shouting {subject}",
    "a {subject} with face paint", "a {subject} in an astronaut suit", "a {subject} in a medieval armour",
)  # fmt: skip
_VIEWS = ("portrait photo of {}", "a candid photo of {}, street in the background")
_LIGHTS = (
    "neon light", "candle light", "a silhouette against the sunset", "black and white", "green stage light",
    "hard noon sun", "moonlight", "soft window light", "fog", "red darkroom light", "golden hour", "an overcast sky",
)  # fmt: skip
_LIT = ("a {subject}, LIGHT", "close-up of a {subject}, LIGHT", "a {subject} in a forest, LIGHT")
_COMPOSITIONS = (
    "full body photo of a {subject} walking", "a wide landscape with a small {subject} on a hill",
    "a {subject} in profile", "a {subject} from behind", "three people around a table, a {subject} in the middle",
    "a {subject} seen from above", "a {subject} seen from below", "a {subject} at the left edge of the image",
    "a {subject} riding a bicycle", "a {subject} playing the piano", "a {subject} reading in a library",
    "a {subject} reflected in a mirror", "a {subject} swimming under water", "a {subject} dancing on a stage",
)  # fmt: skip
_MATERIALS = (
    "ice", "stone", "wood", "glass", "bronze", "marble", "sand", "chocolate", "wire", "porcelain", "origami paper",
    "wool",
)  # fmt: skip
_SCULPTURES = ("a statue of a {subject} made of MATERIAL", "a bust of a {subject} made of MATERIAL in a museum")
_NO_ONE = (
    "a mountain lake", "a bowl of fruit", "a cat on a windowsill", "an empty street at night", "a red bicycle",
    "a lighthouse in a storm", "a stack of old books", "a forest in autumn", "a space station", "a cup of coffee",
    "a castle on a cliff", "a field of sunflowers",
)  # fmt: skip

PROMPTS: tuple[str, ...] = (
    *_STYLES,
    *(f"{style} {place}" for style, place in product(_STYLES, _PLACES)),
    *(view.format(attribute) for attribute, view in product(_ATTRIBUTES, _VIEWS)),
    *(lit.replace("LIGHT", light) for light, lit in product(_LIGHTS, _LIT)),
    *_COMPOSITIONS,
    *(f"{composition}, film still" for composition in _COMPOSITIONS),
    *(sculpture.replace("MATERIAL", material) for material, sculpture in product(_MATERIALS, _SCULPTURES)),
    *_NO_ONE,
)


def read_prompts(file: Path) -> tuple[str, ...]:
    """A user's own, one per line. LikenessError when there is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LikenessError(f"The prompts '{file}' cannot be read ({error}): write a text file of prompts.") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise LikenessError(f"The file '{file}' holds no prompt: write one per line, with {SLOT} for the person.")
    return found
