"""BERT's word pieces: the word for a subject as the Q-Former reads it.

    [CLS] pieces [SEP]      the longest piece of the vocabulary first; what follows it inside a word begins with ##

The vocabulary is that of bert-base-uncased, a text file with a piece on each line, which no file of BLIP-Diffusion and
no part of ComfyUI holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LikenessError

VOCABULARY = "vocab.txt"
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_MOST_WORDS = 50
_LONGEST_WORD = 100  # letters; a longer one is unknown
_REMOVED = re.compile(r'[.!"()*#:;~]')  # by LAVIS, before the tokenizer


def clean(text: str) -> str:
    """As LAVIS cleans a caption: lower case, without most punctuation, at most 50 words."""
    return " ".join(_REMOVED.sub(" ", text.lower()).split()[:_MOST_WORDS])


class WordPieces:
    """BERT's uncased tokenizer."""

    def __init__(self, pieces: Sequence[str], name: str = VOCABULARY) -> None:
        """pieces: by id. Raises LikenessError when they are no vocabulary of BERT's."""
        self.name = name
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        missing = [piece for piece in (PAD, UNKNOWN, START, END) if piece not in self._ids]
        if missing:
            raise LikenessError(
                f"{name!r} is not the vocabulary of bert-base-uncased ({missing[0]} is missing): put that model's "
                f"{VOCABULARY} in its place."
            )

    @classmethod
    def load(cls, path: Path) -> WordPieces:
        """Of a vocabulary file. Raises LikenessError when it is none."""
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise LikenessError(
                f"The vocabulary {path.name!r} cannot be read: download {VOCABULARY} of bert-base-uncased again."
            ) from error
        return cls(text.split("\n")[: -1 if text.endswith("\n") else None], path.name)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def unknown(self) -> int:
        """The id of what the vocabulary does not know."""
        return self._ids[UNKNOWN]

    def ids(self, text: str) -> list[int]:
        """[CLS] pieces [SEP]"""
        words = [self._ids[piece] for word in _words(text) for piece in self._pieces(word)]
        return [self._ids[START], *words, self._ids[END]]

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cleaned texts, padded to the longest: ids and mask, (n, longest)"""
        rows = [self.ids(clean(text)) for text in texts]
        longest = max(map(len, rows))
        spare = [longest - len(row) for row in rows]
        ids = [row + [self._ids[PAD]] * more for row, more in zip(rows, spare, strict=True)]
        mask = [[1] * len(row) + [0] * more for row, more in zip(rows, spare, strict=True)]
        return torch.tensor(ids), torch.tensor(mask)

    def _pieces(self, word: str) -> list[str]:
        """The longest known piece first; the whole word is unknown where a part of it is."""
        found, start = [], 0
        while start < len(word):
            inside = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if inside + word[start:e] in self._ids), None)
            if end is None or len(word) > _LONGEST_WORD:
                return [UNKNOWN]
            found.append(inside + word[start:end])
            start = end
        return found


def _words(text: str) -> Iterator[str]:
    """Lower-case words without accents; every mark of punctuation, and every Chinese sign, is a word."""
    letters = []
    for sign in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(sign)
        if kind == "Mn" or sign in "\x00\ufffd" or (kind.startswith("C") and sign not in "\t\n\r"):
            continue
        letters.append(f" {sign} " if _is_punctuation(sign, kind) or _is_chinese(sign) else sign)
    yield from "".join(letters).split()


def _is_punctuation(sign: str, kind: str) -> bool:
    return kind.startswith("P") or (sign.isascii() and not sign.isalnum() and not sign.isspace())


def _is_chinese(sign: str) -> bool:
    ranges = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    return any(low <= ord(sign) <= high for low, high in ranges)
