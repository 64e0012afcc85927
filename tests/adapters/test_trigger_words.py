"""Words that stand for people, found as the tokenizer cut them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.text_encoder import TORN, WORD_END, Token, Tower, level
from likeness.adapters.trigger_words import (
    mentions,
    place_in_all,
    places_of,
    repeated,
    replaced,
    run_places,
    without,
    words_in,
)
from likeness.errors import LikenessError


class Vocabulary:
    """Pieces of at most four letters; punctuation is a word. Two towers that read alike."""

    towers = (Tower("clip_l", 8), Tower("clip_g", 12, pad=0))

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def pieces(self, text: str) -> list[Token]:
        words = "".join(f" {c} " if c in ",.-!" else c for c in text.lower()).split()
        cut = [
            word[at : at + 4] + (WORD_END if at + 4 >= len(word) else "")
            for word in words
            for at in range(0, len(word), 4)
        ]
        return [Token(self.ids.setdefault(piece, len(self.ids) + 1), piece) for piece in cut]

    def tokenize(self, text: str) -> dict[str, list[Token]]:
        return {tower.name: self.pieces(text) for tower in self.towers}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary()


def found(
    vocabulary: Vocabulary, text: str, words: tuple[str, ...] = ("img",), people: int = 1
) -> list[tuple[str, int]]:
    by_tower = mentions(vocabulary, vocabulary.tokenize(text), words, people)  # type: ignore[arg-type]
    return [(mention.word, mention.person) for mention in place_in_all(by_tower)]


def refused(vocabulary: Vocabulary, text: str, words: tuple[str, ...] = ("img",), people: int = 1) -> str:
    with pytest.raises(LikenessError) as error:
        found(vocabulary, text, words, people)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("a man img", "man"),
        ("a man img, in the rain", "man"),
        ("a MAN IMG in the rain", "man"),
        ("red-man img", "man"),
        ("an astronaut img", "t"),  # the last piece of the word
        ("a man img imgs and an img1", "man"),  # not inside longer words
    ],
)
def test_the_noun_before_the_trigger(vocabulary, text, noun):
    assert found(vocabulary, text) == [(noun, 0)]


def test_a_trigger_of_several_pieces_is_one_word(vocabulary):
    assert found(vocabulary, "a man photoface and more", ("photoface",)) == [("man", 0)]
    assert "no trigger word" in refused(vocabulary, "a man phot oface", ("photoface",))


def test_a_noun_of_several_pieces_says_so(vocabulary):
    first, second = mentions(vocabulary, vocabulary.tokenize("an astronaut img and a man img"), ("img",), 2)["clip_l"]
    assert first.cut and not second.cut


@pytest.mark.parametrize(
    ("text", "words", "people", "expected"),
    [
        ("a man", ("img",), 1, "no trigger word"),
        ("img in the rain", ("img",), 1, "starts with the trigger word 'img'"),
        ("a man, img", ("img",), 1, "follows ','"),
        ("a man img img", ("img",), 2, "follow each other"),
        ("a man img and a woman img", ("img",), 1, "2 times, but only one identity is connected"),
        ("a man img, a woman img, a boy img", ("img",), 2, "3 times, but only 2 identities are connected"),
        ("a man img and a woman jpg", ("img", "jpg"), 1, "2 trigger words (img, jpg), but only one identity"),
        ("imgs of a man", ("img",), 1, "no trigger word"),
        ("", ("img",), 1, "no trigger word"),
    ],
)  # fmt: skip
def test_what_a_prompt_lacks_is_one_sentence(vocabulary, text, words, people, expected):
    assert expected in refused(vocabulary, text, words, people)


def test_each_place_of_one_trigger_is_the_next_person(vocabulary):
    assert found(vocabulary, "a man img and a girl img", people=3) == [("man", 0), ("girl", 1)]


def test_each_of_several_triggers_is_one_person_however_often(vocabulary):
    text = "a boy jpg behind a man img, the boy jpg laughs"
    assert found(vocabulary, text, ("img", "jpg"), 2) == [("boy", 1), ("man", 0), ("boy", 1)]


@pytest.mark.parametrize(("entered", "words"), [("img", ("img",)), (" img , jpg,", ("img", "jpg"))])
def test_entered_trigger_words(entered, words):
    assert words_in(entered) == words


@pytest.mark.parametrize("entered", ["", " , ", "(img)", "img:1.2", "!!"])
def test_trigger_words_that_cannot_be(entered):
    with pytest.raises(LikenessError, match="trigger word"):
        words_in(entered)


def test_the_plain_prompt_has_no_trigger(vocabulary):
    text = "a man img, and a girl img"
    plain = without(vocabulary.tokenize(text), vocabulary, ("img",))
    expected = vocabulary.tokenize("a man, and a girl")
    for name, own in plain.items():
        assert [token.id for token in own] == [token.id for token in expected[name]]


def test_nouns_are_repeated_and_found_again(vocabulary):
    tokens = vocabulary.tokenize("a man img and a girl img in the rain")
    marks = mentions(vocabulary, tokens, ("img",), 2)["clip_l"]
    longer = repeated(without(tokens, vocabulary, ("img",))["clip_l"], marks, lambda mention: (3, 2)[mention.person])
    assert [token.word for token in longer] == ["a", *["man"] * 3, "and", "a", *["girl"] * 2, "in", "the", "rain"]
    windows = vocabulary.towers[0].windows(longer)
    assert [run_places(windows, run) for run in (1, 2)] == [[2, 3, 4], [7, 8]]


def test_weights_stay_with_their_words(vocabulary):
    tokens = [Token(t.id, t.piece, 1.3, 2) for t in vocabulary.pieces("man img")]
    by_tower = {"clip_l": tokens, "clip_g": tokens}
    marks = mentions(vocabulary, by_tower, ("img",), 1)["clip_l"]
    longer = repeated(without(by_tower, vocabulary, ("img",))["clip_l"], marks, lambda mention: 2)
    assert [(token.weight, token.group, token.run) for token in longer] == [(1.3, 2, 1)] * 2


def test_a_placeholder_gives_way_to_vectors_everywhere(vocabulary):
    tokens = vocabulary.pieces("a photo of sksword, and sksword again")
    spans = places_of(tokens, vocabulary.pieces("sksword"))
    vectors = torch.arange(6.0).view(3, 2)
    changed = replaced(tokens, spans, vectors)
    assert [token.word for token in changed].count("an embedding") == 6 and len(changed) == len(tokens) - 4 + 6
    stands = [token.id for token in changed if isinstance(token.id, torch.Tensor)]
    assert all(torch.equal(one, vectors[i % 3]) for i, one in enumerate(stands))


def test_an_embedding_before_the_trigger_carries_the_person(vocabulary):
    tokens = [*vocabulary.pieces("a"), Token(torch.zeros(8)), *vocabulary.pieces("img")]
    by_tower = {"clip_l": tokens, "clip_g": tokens}
    assert [m.word for m in mentions(vocabulary, by_tower, ("img",), 1)["clip_l"]] == ["an embedding"]


# Windows --------------------------------------------------------------------------------------------------------------


@given(
    groups=st.lists(st.integers(1, 200), max_size=8),
    runs=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 75)), max_size=3),
)
def test_nothing_is_lost_and_no_run_is_torn(groups, runs):
    tower = Tower("clip_l", 8)
    tokens = [Token(1000 + i, group=group) for group, count in enumerate(groups) for i in range(count)]
    for number, (place, count) in enumerate(runs, 1):
        place = min(place, len(tokens))
        group = tokens[place - 1].group if place else 0
        tokens[place:place] = [Token(number, group=group, run=number)] * count
    windows = tower.windows(tokens)
    assert all(len(window) == 77 and window[0].id == 49406 for window in windows)
    special = (tower.start, tower.end)
    assert [t.id for w in windows for t in w if t.id not in special] == [t.id for t in tokens]
    for number, (_, count) in enumerate(runs, 1):
        assert len(run_places(windows, number)) == count
    if len(runs) == 1:  # later ones may be put into earlier ones here, as no prompt does
        places = run_places(windows, 1)
        assert places == list(range(places[0], places[0] + runs[0][1])) and places[0] // 77 == places[-1] // 77


def test_a_short_group_moves_to_the_next_window_whole():
    tower = Tower("clip_l", 8)
    tokens = [Token(1, group=1)] * 72 + [Token(2, group=2)] * (TORN - 1)
    first, second = tower.windows(tokens)
    assert [t.id for t in first].count(2) == 0 and [t.id for t in second].count(2) == TORN - 1


def test_towers_get_the_same_number_of_windows():
    towers = (Tower("clip_l", 8), Tower("clip_g", 8, pad=0))
    windows = level(towers, {"clip_l": towers[0].windows([Token(1)] * 100), "clip_g": towers[1].windows([Token(1)])})
    assert len(windows["clip_l"]) == len(windows["clip_g"]) == 2
    assert [t.id for t in windows["clip_g"][1]][:3] == [49406, 49407, 0]


def test_towers_that_read_differently_are_refused(vocabulary):
    marks = mentions(vocabulary, vocabulary.tokenize("a man img"), ("img",), 1)
    with pytest.raises(LikenessError, match="not read alike"):
        place_in_all({**marks, "clip_g": []})
