"""What training images are called: templates around a trigger word, written for portraits.

The idea is that of Textual Inversion (arXiv 2208.01618): neutral sentences, a different one for every image, so that
the trigger word is what they have in common. `{}` stands for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ...errors import LikenessError
from .names import check_word

SLOT = "{}"
_PERSON = (
    "a photo of a {} CLASS",
    "a portrait of a {} CLASS",
    "a photo of the {} CLASS",
    "a close view of a {} CLASS",
    "a portrait photo of one {} CLASS",
    "a snapshot of the {} CLASS",
    "a clear picture of a {} CLASS",
    "the face of a {} CLASS in a photo",
)
_STYLE = (
    "a photo of a CLASS in the style of {}",
    "a portrait of a CLASS in the style of {}",
    "a picture of the CLASS in the style of {}",
    "a portrait photo of one CLASS in the style of {}",
    "a CLASS in the style of {}",
)


def person_templates(class_word: str) -> tuple[str, ...]:
    """Sentences about a person, `{}` before the class word, as in "a photo of a {} person"."""
    return tuple(template.replace("CLASS", class_word) for template in _PERSON)


def style_templates(class_word: str) -> tuple[str, ...]:
    """Sentences about a style of portraits, `{}` at the end."""
    return tuple(template.replace("CLASS", class_word) for template in _STYLE)


def composed(person_template: str, style_word: str) -> str:
    """A person's template with a style after it."""
    return f"{person_template} in the style of {style_word}"


def parse_templates(text: str) -> tuple[str, ...]:
    """One template a line, empty lines ignored. LikenessError for a line without `{}`."""
    lines = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    for line in lines:
        if SLOT not in line:
            raise LikenessError(f"The caption template {line!r} has no {{}}: write {{}} where the trigger word goes.")
    return lines


def fill_template(template: str, trigger: str) -> str:
    """The template with the trigger word in it."""
    return template.replace(SLOT, trigger)


def names(caption: str, trigger: str) -> bool:
    """Whether a caption holds the trigger as a word of its own, in any case."""
    return _word(trigger).search(caption) is not None


def renamed(caption: str, trigger: str, other: str) -> str:
    """The caption with another word in the trigger's place."""
    return _word(trigger).sub(lambda _: other, caption)


def _word(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def check_trigger(trigger: str) -> str:
    """The trigger word without spaces around it. LikenessError unless it is one word, which prompts read as it is."""
    word = unicodedata.normalize("NFC", trigger.strip())  # as captions are read
    if not word or len(word.split()) > 1 or SLOT in word:
        raise LikenessError(
            f"The trigger word {trigger!r} is not one word: use a rare one without spaces, such as ohwx or sks."
        )
    return check_word(word, "The trigger word")


def check_captions(captions: Sequence[tuple[str, str]], trigger: str) -> None:
    """captions: (name of the image, caption). LikenessError naming those that lack the trigger word."""
    lacking = [name for name, caption in captions if not names(caption, trigger)]
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise LikenessError(
            f"The caption of {shown} lacks the trigger word {trigger!r}: write it, with spaces around it, or {{}}, "
            "where the caption names what is to be learned."
        )
