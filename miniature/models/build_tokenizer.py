"""Writes the tokenizer's files. `python -m likeness.miniature.models.build_tokenizer` rebuilds them to the byte.

Standard CLIP files, which `transformers.CLIPTokenizer` and ComfyUI's `SDTokenizer` load alike: byte-pair merges learned
on the vocabulary until every word is one token, then all single characters, so that any other word falls to letters.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

from ..drawing.captions import vocabulary

FOLDER = Path(__file__).parents[1] / "tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
_SUFFIX = "</w>"


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of each word (Sennrich et al., 2016, arXiv:1508.07909).

    The commonest pair is merged everywhere, again and again; merges written by hand word for word would fire inside one
    another. Ties go to the pair first in the alphabet: the trainer of `tokenizers` orders them anew in every process.
    """
    pieces = [[*word[:-1], word[-1] + _SUFFIX] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((left, right))
        pieces = [_merge(word, left, right) for word in pieces]
    return merges


def _merge(word: list[str], left: str, right: str) -> list[str]:
    """A word in which every `left` before a `right` is joined to it."""
    merged: list[str] = []
    for piece in word:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


def _alphabet() -> list[str]:
    return sorted(string.ascii_lowercase + string.digits + string.punctuation)


def tokenizer_files() -> dict[str, str]:
    """The four files by name."""
    merges = merges_of([word for word in vocabulary() if len(word) > 1])
    tokens = [*_alphabet(), *(character + _SUFFIX for character in _alphabet())]
    tokens += [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, indent=0) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *(f"{left} {right}" for left, right in merges)]) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }


def write_tokenizer(folder: Path = FOLDER) -> None:
    """Write the files into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_tokenizer()
    print(f"written to {FOLDER}")
