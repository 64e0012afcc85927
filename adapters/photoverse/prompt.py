"""A prompt in which placeholders are people: a face's vectors stand among the embeddings of the words.

    embeddings' = embeddings[:k] ++ p_f (m rows) ++ embeddings[k + 1 :]          k: place of the placeholder

What follows moves by m - 1; positions, the causal transformer and its norm come after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import LikenessError
from ..effects import PromptStates
from ..text_encoder import TextEncoder, Token, Tokens, encode_tokens
from ..trigger_words import pattern_of, with_stand_ins


def insert(embeddings: Tensor, places: Sequence[int], vectors: Tensor) -> Tensor:
    """The equation for token embeddings (batch, n, dim), a placeholder in each: cut at n again.

    places: k of every row. vectors: (batch, m, dim).
    """
    rows = [
        torch.cat([row[:place], own, row[place + 1 :]])[: len(row)]
        for row, place, own in zip(embeddings, places, vectors, strict=True)
    ]
    return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Placed:
    """A prompt whose placeholders were found. tokens: with a stand-in for each; people: number of the person at every
    stand-in, in the order of the prompt, by tower."""

    encoder: TextEncoder
    tokens: Tokens
    people: dict[str, dict[int, int]]  # tower -> place among its tokens -> number of the person

    def encoded(self, by: Callable[[int, str], Sequence[int | Tensor]]) -> PromptStates:
        """The states of the prompt with what `by` (number of the person, tower) gives in place of the stand-ins."""
        changed = {name: self._changed(name, row, by) for name, row in self.tokens.items()}
        return encode_tokens(self.encoder, changed)

    def _changed(
        self, name: str, row: Sequence[Token], by: Callable[[int, str], Sequence[int | Tensor]]
    ) -> list[Token]:
        result: list[Token] = []
        for place, token in enumerate(row):
            person = self.people[name].get(place)
            if person is None:
                result.append(token)
            else:
                result += [replace(token, id=one, piece="", run=place + 1) for one in by(person, name)]
        return result


def find_placeholders(encoder: TextEncoder, text: str, words: Sequence[str], people: int) -> Placed:
    """Where a prompt speaks of people.

    One word: it is the one person wherever it stands, or the n-th of several at its n-th place. Several: word n is
    person n. Raises LikenessError for a prompt without a placeholder, or with more people than there are.
    """
    named = [match[0].lower() for match in pattern_of(words).finditer(text)]
    if not named:
        raise LikenessError(
            f"The prompt has no placeholder: write {words[0]!r} where the person is, as in 'a photo of {words[0]}'."
        )
    numbers = _numbers(named, [word.lower() for word in words], people)
    if max(numbers) >= people:
        have = f"{people} identities are" if people > 1 else "one identity is"
        raise LikenessError(
            f"The prompt names {max(numbers) + 1} people ({', '.join(words)}), but only {have} connected: connect one "
            "for each, or leave placeholders out."
        )
    text, ids = with_stand_ins(encoder, text, words)
    tokens = encoder.tokenize(text)
    return Placed(
        encoder, tokens, {name: _people(row, [i[name] for i in ids], numbers) for name, row in tokens.items()}
    )


def _numbers(named: Sequence[str], words: Sequence[str], people: int) -> list[int]:
    """The number of the person at every placeholder."""
    if len(words) > 1:
        return [words.index(name) for name in named]
    return [0] * len(named) if people == 1 else list(range(len(named)))


def _people(row: Sequence[Token], ids: Iterable[int], numbers: Sequence[int]) -> dict[int, int]:
    wanted = set(ids)
    places = [place for place, token in enumerate(row) if isinstance(token.id, int) and token.id in wanted]
    return dict(zip(places, numbers, strict=True))


def class_ids(encoder: TextEncoder, word: str) -> Callable[[int, str], Sequence[int | Tensor]]:
    """For `Placed.encoded`: the word in place of everybody."""
    tokens = encoder.tokenize(word)
    return lambda _person, name: [token.id for token in tokens[name]]
