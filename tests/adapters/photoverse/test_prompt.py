"""People in a prompt: where their vectors stand, how the rest moves, and prompts that name nobody or too many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from likeness.adapters.effects import PromptStates
from likeness.adapters.photoverse.prompt import class_ids, find_placeholders, insert
from likeness.adapters.text_encoder import Token, Tower
from likeness.errors import LikenessError

DIM = 6
TABLE = torch.randn(50_000, DIM, generator=torch.Generator().manual_seed(9))


class Encoder:
    """Every word is a token, as is every sign; the states are what the windows hold, and weights multiply them."""

    def __init__(self, length: int = 77, group: int = 0) -> None:
        self.towers = (Tower("clip_l", DIM, length=length),)
        self.group = group

    def tokenize(self, text: str) -> dict[str, list[Token]]:
        tokens, weight = [], 1.0
        for word in text.replace(",", " , ").replace("(", " ( ").replace(":2)", " ) ").split():
            weight = {"(": 2.0, ")": 1.0}.get(word, weight)
            if word not in "()":
                tokens.append(Token(sum(ord(c) * 7**i for i, c in enumerate(word)) % 49_000, f"{word}</w>", weight, 1))
        return {"clip_l": tokens}

    def encode(self, windows: Any, layer: int | None = None) -> PromptStates:
        rows = [
            token.weight * (token.id if isinstance(token.id, Tensor) else TABLE[token.id])
            for window in windows["clip_l"]
            for token in window
        ]
        return PromptStates(torch.stack(rows).unsqueeze(0))


def vectors(m: int, seed: int = 1) -> Tensor:
    return torch.randn(m, DIM, generator=torch.Generator().manual_seed(seed))


def states(text: str, words: tuple[str, ...], *people: Tensor, encoder: Encoder | None = None) -> Tensor:
    placed = find_placeholders(encoder or Encoder(), text, words, len(people))
    return placed.encoded(lambda person, _: list(people[person])).states[0]


def of(text: str) -> Tensor:
    [tokens] = Encoder().tokenize(text).values()
    return torch.stack([TABLE[token.id] for token in tokens])


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("text", ["a photo of S* laughing", "S*, laughing", "a photo of s*"])
def test_a_person_takes_the_placeholders_place_and_the_rest_moves(m, text):
    """However punctuation would be cut with it, and in any case."""
    own = vectors(m)
    before, after = text.lower().split("s*")
    found = states(text, ("S*",), own)
    expected = torch.cat([of(before.strip()) if before.strip() else TABLE[:0], own])
    assert torch.equal(found[1 : 1 + len(expected)], expected)
    if rest := after.strip():
        assert torch.equal(found[1 + len(expected) :][: len(of(rest))], of(rest))


def test_one_person_is_everywhere_the_word_is():
    own = vectors(2)
    found = states("S* and S*", ("S*",), own)
    assert torch.equal(found[1:6], torch.cat([own, of("and"), own]))


def test_several_people_by_their_order_or_by_their_words():
    ann, ben = vectors(1, 1), vectors(1, 2)
    assert torch.equal(states("S* and S*", ("S*",), ann, ben)[1:4], torch.cat([ann, of("and"), ben]))
    found = states("B* and A* and b*", ("A*", "B*"), ann, ben)
    assert torch.equal(found[1:6], torch.cat([ben, of("and"), ann, of("and"), ben]))


def test_the_weight_of_the_prompt_is_the_persons():
    own = vectors(2)
    assert torch.equal(states("a (S*:2) there", ("S*",), own)[2:4], 2 * own)


def test_a_long_prompt_is_read_on_in_a_second_window_and_nobody_is_torn():
    """As the host reads it: the vectors of a person stay together."""
    own = vectors(5)
    text = " ".join(f"w{i}" for i in range(7)) + " S*"
    found = states(text, ("S*",), own, encoder=Encoder(length=12))
    assert len(found) == 24 and torch.equal(found[13:18], own)


def test_the_class_word_stands_where_nobody_is_meant():
    encoder = Encoder()
    plain = find_placeholders(encoder, "a photo of S* there", ("S*",), 1).encoded(class_ids(encoder, "young person"))
    assert torch.equal(plain.states, encoder.encode({"clip_l": [_window("a photo of young person there")]}).states)


def _window(text: str) -> list[Token]:
    encoder = Encoder()
    return encoder.towers[0].window(encoder.tokenize(text)["clip_l"])


@pytest.mark.parametrize(
    ("text", "words", "people", "said"),
    [
        ("a photo of a man", ("S*",), 1, "write 'S*' where the person is"),
        ("S* and S* and S*", ("S*",), 2, "names 3 people"),
        ("B*", ("A*", "B*"), 1, "only one identity is connected"),
        ("", ("S*",), 1, "no placeholder"),
        ("an S*x", ("S*x1",), 1, "no placeholder"),
    ],
)
def test_a_prompt_that_names_nobody_or_too_many_is_refused(text, words, people, said):
    with pytest.raises(LikenessError) as error:
        find_placeholders(Encoder(), text, words, people)
    assert said in str(error.value) and str(error.value).endswith(".") and "\n" not in str(error.value)


# The equation itself, as training and the official code compute it ----------------------------------------------------


@given(st.integers(1, 6), st.integers(2, 12), st.data())
def test_insertion_shifts_and_is_cut_at_the_same_length(m, length, data):
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3))
    rows, own = torch.randn(len(places), length, 2), torch.randn(len(places), m, 2)
    found = insert(rows, places, own)
    assert found.shape == rows.shape
    for row, place, mine, before in zip(found, places, own, rows, strict=True):
        room = min(m, length - place)
        assert torch.equal(row[:place], before[:place]) and torch.equal(row[place : place + room], mine[:room])
        assert torch.equal(row[place + room :], before[place + 1 : place + 1 + length - place - room])


def test_gradients_reach_the_vectors_alone():
    rows, own = torch.randn(1, 6, 2), torch.randn(1, 2, 2, requires_grad=True)
    insert(rows, [2], own).square().sum().backward()
    assert own.grad is not None and bool(own.grad.abs().sum() > 0)
