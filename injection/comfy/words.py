"""Learned words in a CLIP: prompts name them as they are, in the host's own CLIP Text Encode.

The host puts vectors into a prompt where it reads `embedding:<file>`. Our words are written so before it reads the
prompt, and the files are looked up here first: syntax, weights and long prompts stay the host's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...adapters.trigger_words import pattern_of
from ...errors import LikenessError
from ...weights.embedding_files import TokenEmbedding

_KEY = "likeness_word_"  # of the files that do not exist


def with_words(clip: Any, tokens: Mapping[str, TokenEmbedding]) -> Any:
    """A clone of the CLIP that knows these words. The given one is left as it is.

    Raises LikenessError where they are of another text encoder, or the CLIP has one of them already.
    """
    twin = clip.clone()
    if not tokens:
        return twin
    tokenizer = copy.copy(clip.tokenizer)
    towers = {name: value for name, value in vars(tokenizer).items() if hasattr(value, "_try_get_embedding")}
    for word, token in tokens.items():
        if sorted(token.vectors) != sorted(towers):
            raise LikenessError(
                f"The word {word} was learned for {' and '.join(token.vectors)}, and the CLIP has "
                f"{' and '.join(towers) or 'none of these'}: connect the CLIP of the base model it was trained on."
            )
    for name, tower in towers.items():
        vectors = {word: token.vectors[name] for word, token in tokens.items()}
        for word, rows in vectors.items():
            if rows.shape[1] != _width(clip, name):
                raise LikenessError(
                    f"The word {word} has vectors of width {rows.shape[1]} and the CLIP reads {_width(clip, name)}: "
                    "connect the CLIP of the base model it was trained on."
                )
        setattr(tokenizer, name, _taught(tower, vectors))
    twin.tokenizer = tokenizer
    return twin


def _width(clip: Any, name: str) -> int:
    return getattr(clip.cond_stage_model, name).transformer.get_input_embeddings().weight.shape[1]


def _taught(tower: Any, vectors: Mapping[str, Tensor]) -> Any:
    """A copy of a tower's tokenizer that knows these words besides those it has."""
    twin = copy.copy(tower)
    known: dict[str, Tensor] = getattr(tower, "likeness_words", {})
    taken = next((word for word in vectors if word.lower() in {other.lower() for other in known}), None)
    if taken is not None:
        raise LikenessError(
            f"The CLIP knows the word {taken} already: give one of the two another word in Load Concept."
        )
    if not known:
        twin.__class__ = type(f"Taught{type(tower).__name__}", (_Taught, type(tower)), {})
    twin.likeness_words = {**known, **vectors}
    if twin.embedding_directory is None:
        twin.embedding_directory = []  # the host reads no embeddings without one
    return twin


class _Taught:
    """What is put before a tokenizer's own class."""

    likeness_words: dict[str, Tensor]

    def tokenize_with_weights(self, text: str, *given: Any, **named: Any) -> Any:
        """The host's, of the text in which our words are files."""
        words = list(self.likeness_words)
        for number in sorted(range(len(words)), key=lambda n: -len(words[n])):
            text = pattern_of([words[number]]).sub(f" embedding:{_KEY}{number} ", text)
        return super().tokenize_with_weights(text, *given, **named)  # type: ignore[misc]

    def _try_get_embedding(self, embedding_name: str) -> Any:
        """The host's answer: the vectors, its name on newer hosts, and what text is left."""
        name, _, rest = embedding_name.partition(" ")
        if not name.startswith(_KEY):
            return super()._try_get_embedding(embedding_name)  # type: ignore[misc]
        unknown = super()._try_get_embedding("likeness_no_such_file")  # type: ignore[misc]
        vectors = list(self.likeness_words.values())[int(name[len(_KEY) :])]
        return (vectors, *unknown[1:-1], rest.strip())
