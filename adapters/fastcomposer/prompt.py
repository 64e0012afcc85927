"""FastComposer's prompt: which word is whose, as the tokenizer cut it, and what is read of it before and after.

A marker follows the noun of a subject, "a man img and a woman img". It is taken out, and the noun's last piece carries
the subject. Without markers the nouns themselves can be named, "man, woman".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ...errors import LikenessError
from ..text_encoder import TextEncoder, Token, Tokens, Tower, Windows, level
from ..trigger_words import Mention, mentions, pattern_of, place_in_all, places_of, repeated, run_places, without


class SubjectWords(Enum):
    """What the trigger words are; the value is the name a user chooses."""

    MARKER = "behind the noun"  # "a man img": taken out of the prompt
    NOUN = "the noun itself"  # "a man"


class LongPrompts(Enum):
    """What happens to a prompt that is longer than CLIP's 77 tokens; the value is the name a user chooses."""

    REFUSE = "refuse them"  # training showed none
    WINDOWS = "read all of it"  # in several windows, as the host does
    CUT = "cut as the official code"  # to 77 tokens, the end token as well


@dataclass(frozen=True, eq=False)
class Subjects:
    """A prompt as it is read. windows: without markers. found: the subjects in reading order, and where each one's
    noun stands among the states, `places`."""

    windows: Windows
    found: Sequence[Mention]
    places: Sequence[int]


def read(
    encoder: TextEncoder,
    text: str,
    words: Sequence[str],
    people: int,
    kind: SubjectWords = SubjectWords.MARKER,
    long_prompts: LongPrompts = LongPrompts.REFUSE,
) -> Subjects:
    """The prompt of so many people. Nobody at all is plain text.

    Raises LikenessError in one sentence for all that `mentions` refuses, when there are more or fewer words than
    people, and for a prompt that is too long.
    """
    tokens = encoder.tokenize(_apart(text, words) if kind is SubjectWords.MARKER else text)
    kept: Tokens = without(tokens, encoder, words) if kind is SubjectWords.MARKER else tokens
    if people == 0 and all(len(kept[name]) == len(tokens[name]) for name in tokens):
        return Subjects(_windows(encoder.towers, kept, long_prompts), (), ())
    if people == 0:
        raise LikenessError(
            f"The prompt names a person (by {', '.join(map(repr, words))}), but none is connected: connect Identity "
            "from Photos or Load Identity, or images through FastComposer Options."
        )
    if kind is SubjectWords.MARKER:
        by_tower = mentions(encoder, tokens, words, people)
    else:
        by_tower = {tower.name: _nouns(encoder, tokens, tower, words, people) for tower in encoder.towers}
    found = place_in_all(by_tower)
    _check_count(found, words, people)
    marked = {name: repeated(own, by_tower[name], lambda _: 1) for name, own in kept.items()}
    windows = _windows(encoder.towers, marked, long_prompts)
    name = encoder.towers[0].name
    places = [run_places(windows[name], number) for number in range(1, len(found) + 1)]
    if lost := next((mention for mention, place in zip(found, places, strict=True) if not place), None):
        raise LikenessError(
            f"The word {lost.word!r} of a person lies behind the {encoder.towers[0].length} tokens that are read: "
            "shorten the prompt before it."
        )
    return Subjects(windows, found, [place for (place,) in places])


def _apart(text: str, words: Sequence[str]) -> str:
    """Markers such as <|image|> with spaces around them: CLIP's vocabulary would join their signs to a comma."""
    signs = [word for word in words if not (word[0].isalnum() and word[-1].isalnum())]
    return re.sub(pattern_of(signs), r" \g<0> ", text) if signs else text


def _nouns(encoder: TextEncoder, tokens: Tokens, tower: Tower, words: Sequence[str], people: int) -> list[Mention]:
    """The places of the nouns: one noun's n-th place is person n's, each of several is one person's."""
    own = tokens[tower.name]
    found = sorted(
        ((span, number) for number, word in enumerate(words) for span in _spans(encoder, own, tower, word)),
        key=lambda pair: pair[0].start,
    )
    if not found:
        raise LikenessError(
            f"The prompt does not say {words[0]!r}: write it for the person, or enter as trigger word the noun that "
            "the prompt has."
        )
    return [
        Mention(span.stop - 1, own[span.stop - 1].word, place if len(words) == 1 else number, len(span) > 1)
        for place, (span, number) in enumerate(found)
    ]


def _spans(encoder: TextEncoder, tokens: Sequence[Token], tower: Tower, word: str) -> list[range]:
    return places_of(tokens, encoder.tokenize(word)[tower.name])


def _check_count(found: Sequence[Mention], words: Sequence[str], people: int) -> None:
    named = len({mention.person for mention in found})
    most = max(mention.person for mention in found) + 1
    if named == people == most:
        return
    listed = ", ".join(repr(word) for word in words)
    raise LikenessError(
        f"The prompt names {named} {'person' if named == 1 else 'people'} (by {listed}), but {people} "
        f"{'is' if people == 1 else 'are'} connected: connect one for each word, in the order of the prompt."
    )


def _windows(towers: Sequence[Tower], tokens: Tokens, long_prompts: LongPrompts) -> Windows:
    if long_prompts is LongPrompts.CUT:
        return {tower.name: [tower.window(tokens[tower.name])] for tower in towers}
    if long_prompts is LongPrompts.REFUSE:
        for tower in towers:
            count, room = len(tokens[tower.name]), tower.length - 2
            if count > room:
                raise LikenessError(
                    f"The prompt has {count} tokens, and FastComposer reads {room}: shorten it, or choose in "
                    "FastComposer Options how long prompts are read."
                )
    return level(towers, {tower.name: tower.windows(tokens[tower.name]) for tower in towers})
