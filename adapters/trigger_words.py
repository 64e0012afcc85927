"""Words of a prompt that stand for people: found as the tokenizer cut them, taken out, repeated or replaced.

A trigger word follows the noun it belongs to, "a man img in the snow" (PhotoMaker, FastComposer). A placeholder stands
for the person itself, "a photo of S*" (PhotoVerse, SeFi-IDE).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import LikenessError
from .text_encoder import TextEncoder, Token, Tokens

# Words of one token that prompts rarely hold: they keep a name's place while the text is cut into tokens.
_STAND_INS = ("sks", "img", "olis", "shs", "ktn", "ohwx", "wbo")


@dataclass(frozen=True)
class Mention:
    """Where a prompt speaks of a person. place: of its noun among the tokens. word: that noun, or its last piece where
    the vocabulary cuts it. person: which one, from 0."""

    place: int
    word: str
    person: int
    cut: bool = False  # the noun has several pieces


def pattern_of(words: Iterable[str]) -> re.Pattern[str]:
    """Where a text says one of these words, in any case, the longest first; not inside of other words."""
    parts = []
    for word in sorted(words, key=len, reverse=True):
        before = r"(?<!\w)" if word[:1].isalnum() else ""
        after = r"(?!\w)" if word[-1:].isalnum() else ""
        parts.append(f"{before}{re.escape(word)}{after}")
    return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)


def places_of(tokens: Sequence[Token], pieces: Sequence[Token]) -> list[range]:
    """Where a word of these pieces stands as a whole word, from left to right."""
    wanted = [token.id for token in pieces]
    found, start = [], 0
    while start + len(wanted) <= len(tokens):
        here = [token.id for token in tokens[start : start + len(wanted)]]
        whole = start == 0 or tokens[start - 1].ends_word
        if whole and all(isinstance(one, int) and one == other for one, other in zip(here, wanted, strict=True)):
            found.append(range(start, start + len(wanted)))
            start += len(wanted)
        else:
            start += 1
    return found


def words_in(text: str) -> tuple[str, ...]:
    """The trigger words that a user has entered, separated by commas.

    Raises LikenessError when there is none, or one that no tokenizer keeps together.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise LikenessError("The trigger word is empty: enter one, such as img.")
    for word in words:
        if not any(letter.isalnum() for letter in word) or any(letter in word for letter in "()\\:"):
            raise LikenessError(
                f"The trigger word {word!r} cannot be used in a prompt: choose letters and digits, such as img."
            )
    return words


def mentions(encoder: TextEncoder, tokens: Tokens, words: Sequence[str], people: int) -> dict[str, list[Mention]]:
    """The nouns before the trigger words of a prompt, for every tower; `place` counts without the triggers.

    One trigger word: its n-th place belongs to person n. Several: word n belongs to person n, however often it stands
    there. Raises LikenessError in one sentence for a prompt without a trigger word, one without a noun before it, and
    one that names more people than there are.
    """
    spelt = [encoder.tokenize(word) for word in words]
    return {
        tower.name: _mentions(tokens[tower.name], [pieces[tower.name] for pieces in spelt], words, people)
        for tower in encoder.towers
    }


def without(tokens: Tokens, encoder: TextEncoder, words: Sequence[str]) -> dict[str, list[Token]]:
    """The prompt without its trigger words."""
    spelt = [encoder.tokenize(word) for word in words]
    kept = {}
    for name, own in tokens.items():
        gone = {place for pieces in spelt for span in places_of(own, pieces[name]) for place in span}
        kept[name] = [token for place, token in enumerate(own) if place not in gone]
    return kept


def _mentions(
    tokens: Sequence[Token], spelt: Sequence[Sequence[Token]], words: Sequence[str], people: int
) -> list[Mention]:
    found = sorted(
        ((span, number) for number, pieces in enumerate(spelt) for span in places_of(tokens, pieces)),
        key=lambda pair: pair[0].start,
    )
    if not found:
        raise LikenessError(
            f"The prompt has no trigger word: write {words[0]!r} behind the word for the person, as in "
            f"'a man {words[0]}'."
        )
    result, taken = [], 0
    for number, (span, word) in enumerate(found):
        before = tokens[span.start - 1] if span.start > 0 else None
        after_trigger = number > 0 and found[number - 1][0].stop == span.start
        _check_noun(before, words[word], after_trigger)
        person = number if len(words) == 1 else word
        if person >= people:
            raise _too_many(len(found), words, people)
        assert before is not None
        cut = span.start > 1 and not tokens[span.start - 2].ends_word
        result.append(Mention(span.start - 1 - taken, before.word, person, cut))
        taken += len(span)
    return result


def _check_noun(before: Token | None, word: str, after_trigger: bool) -> None:
    """LikenessError unless a noun stands before a trigger word."""
    if before is None:
        raise LikenessError(
            f"The prompt starts with the trigger word {word!r}: write the word for the person before it, "
            f"as in 'a man {word}'."
        )
    if after_trigger:
        raise LikenessError(
            f"Two trigger words follow each other in the prompt: each needs a word for the person before it, "
            f"as in 'a man {word} and a woman {word}'."
        )
    if before.piece and not any(letter.isalnum() for letter in before.word):
        raise LikenessError(
            f"The trigger word {word!r} follows {before.word!r} in the prompt, which is not a word for a person: "
            f"write one right before it, as in 'a man {word}'."
        )


def _too_many(found: int, words: Sequence[str], people: int) -> LikenessError:
    have = f"only {people} identities are" if people > 1 else "only one identity is"
    if len(words) > people:
        return LikenessError(
            f"There are {len(words)} trigger words ({', '.join(words)}), but {have} connected: connect an identity for "
            "each, or leave words out."
        )
    return LikenessError(
        f"The prompt has the trigger word {words[0]!r} {found} times, but {have} connected: connect one for each, in "
        "the order of the prompt, or name several trigger words so that each stands for one person."
    )


def repeated(tokens: Sequence[Token], found: Iterable[Mention], times: Callable[[Mention], int]) -> list[Token]:
    """Every noun as often as its person has tokens. The copies are a run; run n + 1 is that of mention n."""
    at = {mention.place: (number, times(mention)) for number, mention in enumerate(found)}
    result: list[Token] = []
    for place, token in enumerate(tokens):
        number, count = at.get(place, (-1, 1))
        result += [replace(token, run=number + 1)] * count
    return result


def with_stand_ins(encoder: TextEncoder, text: str, names: Sequence[str]) -> tuple[str, list[Mapping[str, int]]]:
    """The text with a word of one token for each of these names, and that token's id by tower.

    A name keeps its place so, however the tokenizer would cut it and whatever punctuation stands behind it. Raises
    LikenessError when the text holds all of the words that could stand in.
    """
    says = pattern_of(names)
    bare = says.sub(" ", text)
    present = {
        name: {token.id for token in row if isinstance(token.id, int)} for name, row in _safe(encoder, bare).items()
    }
    found: list[Mapping[str, int]] = []
    places: dict[str, str] = {}
    words = iter(_STAND_INS)
    for own in names:
        for word in words:
            cut = _one_token(encoder, word)
            if cut and not any(cut[name] in present[name] for name in cut):
                places[own.lower()] = f" {word} "
                found.append(cut)
                break
        else:
            raise LikenessError(
                f"There is no place for {own!r} in this prompt: use fewer subjects, or leave out words such as "
                f"{', '.join(_STAND_INS[:2])}."
            )
    return says.sub(lambda match: places[match[0].lower()], text), found


def _safe(encoder: TextEncoder, text: str) -> Tokens:
    return encoder.tokenize(text if text.strip() else "a")


def _one_token(encoder: TextEncoder, word: str) -> dict[str, int] | None:
    try:
        cut = encoder.tokenize(word)
    except LikenessError:  # a vocabulary of whole words, without this one
        return None
    ids = {name: row[0].id for name, row in cut.items() if len(row) == 1}
    return {name: i for name, i in ids.items() if isinstance(i, int)} if len(ids) == len(cut) else None


def replaced(tokens: Sequence[Token], spans: Iterable[range], vectors: Tensor) -> list[Token]:
    """Vectors (n, width) in place of every one of these words; the words' weights stay."""
    starts = {span.start: span for span in spans}
    gone = {place for span in starts.values() for place in span}
    result: list[Token] = []
    for place, token in enumerate(tokens):
        if place in starts:
            first = tokens[place]
            result += [Token(vector, weight=first.weight, group=first.group, run=first.run) for vector in vectors]
        elif place not in gone:
            result.append(token)
    return result


def run_places(windows: Sequence[Sequence[Token]], run: int) -> list[int]:
    """Where the tokens of a run stand in the states of these windows."""
    return [place for place, token in enumerate(token for window in windows for token in window) if token.run == run]


def place_in_all(found: Mapping[str, Sequence[Mention]]) -> Sequence[Mention]:
    """The mentions, where all towers have the same."""
    first, *others = found.values()
    if any([m.person for m in first] != [m.person for m in other] for other in others):
        raise LikenessError("The prompt is not read alike by both text encoders: load the checkpoint's own CLIP.")
    return first
