"""BERT's word pieces, against transformers' tokenizer, and what no vocabulary reads."""

from __future__ import annotations

import pytest
from helpers.small_world import sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.adapters.blip_diffusion.words import WordPieces, clean

PIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat", "tea", "##pot", "##s", "##ing", "swim", "##m"),
    *(",", "'", "-", "e", "caf", "##e", "狗", "n", "##n", "!", "ß", "½", "1", "##2", "the", "a", "##a", "$"),
)
WORDS = WordPieces(PIECES)
SIGNS = "dogcatesnpmwi ing-,'!12$é½ß狗\t\n\u200b\u00a0ﬁÀ\u0301"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    from transformers import BertTokenizer

    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", "utf-8")
    return BertTokenizer(str(path))


@settings(max_examples=200, deadline=None)
@given(text=st.text(SIGNS, max_size=40))
def test_it_cuts_as_bert_does(official, text):
    assert WORDS.ids(text) == official(text).input_ids


def test_a_batch_is_padded_to_its_longest():
    ids, mask = WORDS.batch(["Teapots.", "dog"])
    assert ids.tolist() == [[2, 7, 8, 9, 3], [2, 5, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_a_caption_is_cleaned_as_by_lavis():
    assert clean('  A "Dog"! (of: mine); ~#*') == "a dog of mine"
    assert clean(" ".join(["dog"] * 60)) == " ".join(["dog"] * 50)


def test_a_vocabulary_is_read_with_any_line_ends(tmp_path):
    path = tmp_path / "vocab.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join(PIECES).encode() + end.encode())
        assert len(WordPieces.load(path)) == len(PIECES)


@pytest.mark.parametrize("content", [b"one\ntwo\n", b"\xff\xfe\x00", b""])
def test_another_file_is_not_a_vocabulary(tmp_path, content):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    assert "vocab.txt" in sentence(WordPieces.load, path)
