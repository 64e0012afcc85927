"""What an image is called: the world's small language, written and read.

    describe -> "a photo of a smiling person with a beard wearing glasses, a red hat and a blue shirt in the forest"

Every fact is one phrase, so a caption can be read back in any order; what a prompt leaves out is left open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import LikenessError
from .shots import Clothing, Colour, Description, Expression, Scene, Style

STYLE_PHRASES: dict[Style, str] = {
    Style.PHOTO: "photo",
    Style.PENCIL: "pencil drawing",
    Style.POP_ART: "pop art picture",
    Style.NIGHT: "night photo",
    Style.WATERCOLOUR: "watercolor painting",
}
SCENE_PHRASES: dict[Scene, str] = {
    Scene.FOREST: "in the forest",
    Scene.BEACH: "on the beach",
    Scene.CITY: "in the city",
    Scene.SNOW: "in the snow",
    Scene.DESERT: "in the desert",
    Scene.MOUNTAINS: "in the mountains",
    Scene.ROOM: "in a room",
    Scene.STAGE: "on a stage",
}
EXPRESSION_WORDS: dict[Expression, str] = {Expression.SMILING: "smiling", Expression.SURPRISED: "surprised"}
CLOTHING_WORDS: dict[Clothing, str] = {
    Clothing.SHIRT: "shirt",
    Clothing.SWEATER: "sweater",
    Clothing.SUIT: "suit",
}
COLOUR_WORDS: dict[Colour, str] = {
    Colour.RED: "red",
    Colour.ORANGE: "orange",
    Colour.YELLOW: "yellow",
    Colour.GREEN: "green",
    Colour.BLUE: "blue",
    Colour.PURPLE: "purple",
    Colour.WHITE: "white",
    Colour.BLACK: "black",
}
TEMPLATES = (
    "{style} of a {expression}person{beard} wearing {clothes} {where}",
    "{style} of a {expression}person {where}{beard} wearing {clothes}",
    "{where}, {style} of a {expression}person{beard}, wearing {clothes}",
)
# Words that methods put into prompts: the class word in other forms, a trigger, and a rare word to be given a meaning.
RESERVED = ("man", "woman", "face", "portrait", "img", "sks")
PUNCTUATION = (",", ".")

_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def caption(description: Description, template: int = 0) -> str:
    """The caption of an image in one of the `TEMPLATES`."""
    clothing = f"{COLOUR_WORDS[description.clothing_colour]} {CLOTHING_WORDS[description.clothing]}"
    worn = ["glasses"] if description.glasses else []
    if description.hat is not None:
        worn.append(_article(f"{COLOUR_WORDS[description.hat]} hat"))
    worn.append(_article(clothing))
    expression = EXPRESSION_WORDS.get(description.expression)
    return TEMPLATES[template].format(
        style=_article(STYLE_PHRASES[description.style]),
        expression=f"{expression} " if expression else "",
        beard=" with a beard" if description.beard else "",
        clothes=worn[0] if len(worn) == 1 else f"{', '.join(worn[:-1])} and {worn[-1]}",
        where=SCENE_PHRASES[description.scene],
    )


@dataclass(frozen=True)
class Wish:
    """What a prompt says of an image; None where it says nothing. Glasses, beard and hat are absent unless named."""

    style: Style | None
    scene: Scene | None
    expression: Expression
    clothing: Clothing | None
    clothing_colour: Colour | None
    glasses: bool
    beard: bool
    hat: Colour | None


def parse(prompt: str) -> Wish:
    """Read a caption, or any prompt made of the same phrases. `parse(caption(d))` says all that `d` says."""
    text = f" {' '.join(words_of(prompt))} "
    colours = {word: colour for colour, word in COLOUR_WORDS.items()}
    pairs = {thing: colours[colour] for colour, thing in re.findall(rf"\b({'|'.join(colours)}) (\w+)", text)}
    clothing = next((c for c, word in CLOTHING_WORDS.items() if f" {word} " in text), None)
    # Longest phrase first: every night photo is a photo too.
    styles = sorted(STYLE_PHRASES, key=lambda style: -len(STYLE_PHRASES[style]))
    return Wish(
        style=next((style for style in styles if f" {STYLE_PHRASES[style]} " in text), None),
        scene=next((scene for scene, phrase in SCENE_PHRASES.items() if f" {phrase.split()[-1]} " in text), None),
        expression=next((e for e, word in EXPRESSION_WORDS.items() if f" {word} " in text), Expression.NEUTRAL),
        clothing=clothing,
        clothing_colour=None if clothing is None else pairs.get(CLOTHING_WORDS[clothing]),
        glasses=" glasses " in text,
        beard=" beard " in text,
        hat=pairs.get("hat"),
    )


def words_of(prompt: str) -> list[str]:
    """The words and signs of a prompt, in lower case."""
    return _WORD.findall(prompt.lower())


def vocabulary() -> list[str]:
    """Every word and sign of the world's language, sorted: what captions use, and the reserved words."""
    parts = re.sub(r"\{\w+\}", " ", " ".join(TEMPLATES))
    phrases: Iterable[str] = (
        *STYLE_PHRASES.values(),
        *SCENE_PHRASES.values(),
        *EXPRESSION_WORDS.values(),
        *CLOTHING_WORDS.values(),
        *COLOUR_WORDS.values(),
        *RESERVED,
        *PUNCTUATION,
        parts,
        "an and with a beard glasses hat",
    )
    return sorted({word for phrase in phrases for word in words_of(phrase)})


def unknown_words(prompt: str, placeholders: Iterable[str] = ()) -> list[str]:
    """A prompt's words without a meaning in this world, in order, each once. `placeholders` are words learned later."""
    for placeholder in placeholders:
        prompt = prompt.replace(placeholder, " ")
    known = set(vocabulary())
    return list(dict.fromkeys(word for word in words_of(prompt) if word not in known))


def check_prompt(prompt: str, placeholders: Iterable[str] = ()) -> None:
    """LikenessError when a prompt has words this world does not know; it names them, and those that are known."""
    unknown = unknown_words(prompt, placeholders)
    if unknown:
        known = ", ".join(word for word in vocabulary() if word.isalnum())
        raise LikenessError(
            f"The miniature world does not know {', '.join(repr(word) for word in unknown)}; its words are: {known}."
        )
