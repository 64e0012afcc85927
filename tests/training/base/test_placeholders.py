"""Placeholder tokens: only their rows train, and the text encoder cannot tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from likeness.errors import LikenessError
from likeness.training.base.placeholders import PlaceholderEmbedding
from likeness.training.base.vocabulary import NewToken, Vocabulary


def test_words_read_the_table_and_placeholders_their_rows():
    table = nn.Embedding(10, 4)
    rows = torch.arange(8.0).view(2, 4)
    embedding = PlaceholderEmbedding(table, [10, 3], rows)
    out = embedding(torch.tensor([[1, 3, 10, 3]]))[0]
    assert torch.equal(out[[1, 2, 3]], rows[[1, 0, 1]]) and torch.equal(out[0], table.weight[1])
    assert torch.equal(embedding.weight[[3, 10]], rows[[1, 0]]) and len(embedding.weight) == 11


def test_gradients_go_to_the_rows_alone_and_equal_those_of_the_whole_table():
    table = nn.Embedding(10, 4)
    ids, cotangent = torch.tensor([[1, 8, 9, 8]]), torch.randn(1, 4, 4)
    whole = nn.Embedding.from_pretrained(table.weight.detach().clone(), freeze=False)
    (whole(ids) * cotangent).sum().backward()
    embedding = PlaceholderEmbedding(table, [8, 9], table.weight[[8, 9]])
    (embedding(ids) * cotangent).sum().backward()
    assert table.weight.grad is None
    torch.testing.assert_close(embedding.rows.grad, whole.weight.grad[[8, 9]])  # type: ignore[index]


def test_rows_stay_in_single_precision_beside_a_half_table():
    embedding = PlaceholderEmbedding(nn.Embedding(10, 4).half(), [9], torch.ones(1, 4))
    assert embedding.rows.dtype == torch.float32 and embedding(torch.tensor([9, 1])).dtype == torch.float16


@pytest.mark.parametrize(("ids", "width"), [([1, 1], 4), ([1], 4), ([1, 2], 5)])
def test_rows_that_do_not_fit_are_refused(ids, width):
    with pytest.raises(LikenessError, match="width 4"):
        PlaceholderEmbedding(nn.Embedding(10, 4), ids, torch.zeros(2, width))


@pytest.mark.parametrize(
    ("start", "vectors", "words"),
    [
        ("person", 2, [["person"], ["person"]]),
        ("red hat", 2, [["red"], ["hat"]]),
        ("red hat", 1, [["red", "hat"]]),
        ("a red hat", 2, [["a", "red"], ["hat"]]),
    ],
)
def test_a_word_starts_from_all_its_start_words(base, start, vectors, words):
    [tower] = base.text
    table = tower.encoder.get_input_embeddings().weight
    ids = [[tower.tokenizer(word, add_special_tokens=False).input_ids[0] for word in group] for group in words]
    expected = torch.stack([table[group].mean(0) for group in ids])
    vocabulary = Vocabulary(base, [NewToken("<x>", vectors, start)])
    torch.testing.assert_close(vocabulary.rows["clip_l"].detach(), expected.detach())
