"""Names that prompts can hold: of files that prompts name, and of words that stand in captions.

The host reads brackets as weights, ends `embedding:<name>` at a space, "<" or "[", and drops commas behind it; its page
reads braces and bars as choices; other packs read two underscores as a wildcard and colons as their own.
"""

from __future__ import annotations

import re
import unicodedata

from ...errors import LikenessError
from ...storage import name_fault

LONGEST_STEM = 199  # bytes, so that a number and a suffix still fit
_WORDS_ONLY = re.compile(r"[()\[\]{}|\\:\x00-\x1f\x7f\ud800-\udfff]")
_PHRASES_ONLY = re.compile(r"[()\[\]{}|\\\x00-\x1f\x7f\ud800-\udfff]")


def prompt_stem(name: str) -> str:
    """The stem of a file that prompts can name, as near to `name` as may be.

    Letters and digits of any script, "-" and "." stay; everything else becomes one underscore.
    """
    text = re.sub(r"\.(safetensors|pt|bin)$", "", unicodedata.normalize("NFC", name.strip()), flags=re.IGNORECASE)
    kept = (letter if unicodedata.category(letter)[0] in "LMN" or letter in "-." else "_" for letter in text)
    stem = re.sub("_+", "_", "".join(kept)).encode()[:LONGEST_STEM].decode(errors="ignore").strip("-._")
    stem = stem or "result"
    return f"_{stem}" if name_fault(stem) else stem  # a device of Windows


def check_word(word: str, what: str) -> str:
    """One word of a prompt, as it is; LikenessError, beginning with `what`, for one that prompts read otherwise."""
    return _without(_WORDS_ONLY, word, what)


def check_phrase(phrase: str, what: str) -> str:
    """Words of a prompt, as they are; LikenessError, beginning with `what`, for those that prompts read otherwise."""
    return _without(_PHRASES_ONLY, phrase, what)


def _without(forbidden: re.Pattern[str], text: str, what: str) -> str:
    if found := forbidden.search(text):
        raise LikenessError(
            f"{what} {text!r} holds {found[0]!r}, which prompts do not read as a letter: use letters, digits, - and _."
        )
    return text
