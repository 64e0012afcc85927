"""Text encoders: the host's CLIP and transformers' models behind one face. Tokens in, states out.

    text ──tokenize──▶ tokens of each tower ──change them──▶ windows of 77 ──encode──▶ states, pooled

Systems that work through the prompt change the tokens in between: they take a trigger word out, repeat the word before
it, or put vectors in its place. A token knows its piece of the vocabulary, so words are found as the tokenizer cut
them, whatever stands around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from .effects import PromptStates

WORD_END = "</w>"  # ends the last piece of every word in CLIP's vocabulary
TORN = 8  # tokens; the host tears a shorter piece of a prompt only where a window ends inside a longer one


@dataclass(frozen=True, eq=False)
class Token:
    """One place of a text.

    id: of the vocabulary, or a vector (width,) that stands in its place. piece: as the vocabulary spells it, "" of a
    vector. weight: of prompt syntax, "(word:1.2)". group: of the pieces of a prompt that were tokenised at once. run:
    tokens of one run stay in one window; 0 of those that belong to none.
    """

    id: int | Tensor
    piece: str = ""
    weight: float = 1.0
    group: int = 0
    run: int = 0

    @property
    def ends_word(self) -> bool:
        """Whether the next token starts a word."""
        return not self.piece or self.piece.endswith(WORD_END)

    @property
    def word(self) -> str:
        """What stands there, for messages."""
        return self.piece.removesuffix(WORD_END) or "an embedding"


@dataclass(frozen=True)
class Tower:
    """One of an encoder's towers. name: clip_l, clip_g or clip_h. width: of its vectors. length: of a window; start,
    end and pad: the ids that fill it."""

    name: str
    width: int
    start: int = 49406
    end: int = 49407
    pad: int = 49407
    length: int = 77

    def window(self, tokens: Sequence[Token]) -> list[Token]:
        """One window of exactly `length` tokens; what does not fit is cut off, the end token as well."""
        whole = [Token(self.start), *tokens, Token(self.end)][: self.length]
        return [*whole, *[Token(self.pad)] * (self.length - len(whole))]

    def windows(self, tokens: Sequence[Token]) -> list[list[Token]]:
        """A text of any length, as the host cuts it; runs are never torn."""
        room = self.length - 2
        filled: list[list[Token]] = [[]]
        for unit in _units(tokens):
            if len(filled[-1]) + len(unit) > room:
                filled.append([])
            filled[-1] += unit
        return [self.window(part) for part in filled]


def _units(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens that go into one window together."""
    for _, group in groupby(tokens, lambda token: token.group):
        whole = list(group)
        if len(whole) < TORN:
            yield whole
            continue
        for run, part in groupby(whole, lambda token: token.run):
            if run:
                yield list(part)
            else:
                yield from ([token] for token in part)


Tokens = Mapping[str, Sequence[Token]]  # tower -> its tokens, without start, end and padding
Windows = Mapping[str, Sequence[Sequence[Token]]]  # tower -> windows of exactly its length


class TextEncoder(Protocol):
    """The text encoder of a base model, wherever it comes from."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Its towers, in the order in which their states stand side by side."""
        ...

    def tokenize(self, text: str) -> Tokens:
        """What the towers read."""
        ...

    def encode(self, windows: Windows, layer: int | None = None) -> PromptStates:
        """Windows -> states (1, windows · length, width), float32, and the pooled vector where the family has one.

        layer: which hidden layer, -1 = the last, with the family's own norm; None for the layer its denoiser reads.
        """
        ...


def encode_tokens(encoder: TextEncoder, tokens: Tokens, layer: int | None = None) -> PromptStates:
    """The states of tokens of any number; see `TextEncoder.encode`. A tower that has fewer windows gets empty ones."""
    windows = {tower.name: tower.windows(tokens[tower.name]) for tower in encoder.towers}
    return encoder.encode(level(encoder.towers, windows), layer)


def level(towers: Sequence[Tower], windows: Windows) -> dict[str, list[Sequence[Token]]]:
    """The same number of windows for every tower: embeddings of different lengths can make them differ."""
    most = max(len(windows[tower.name]) for tower in towers)
    return {
        tower.name: [*windows[tower.name], *[tower.window([])] * (most - len(windows[tower.name]))] for tower in towers
    }


class TransformersTextEncoder:
    """CLIP text models of transformers, one or SDXL's two. Prompt syntax is read as plain text."""

    def __init__(self, towers: Sequence[tuple[str, Any, Any]]) -> None:
        """towers: (name, tokenizer, model) of each."""
        self._parts = {name: (tokenizer, model.eval()) for name, tokenizer, model in towers}
        self._towers = tuple(
            Tower(
                name,
                model.config.hidden_size,
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
                min(tokenizer.model_max_length, model.config.max_position_embeddings),
            )
            for name, (tokenizer, model) in self._parts.items()
        )

    @property
    def towers(self) -> tuple[Tower, ...]:
        """See `TextEncoder`."""
        return self._towers

    def tokenize(self, text: str) -> Tokens:
        """See `TextEncoder`."""
        return {name: tokenised(tokenizer, text) for name, (tokenizer, _) in self._parts.items()}

    @torch.no_grad()
    def encode(self, windows: Windows, layer: int | None = None) -> PromptStates:
        """See `TextEncoder`."""
        several = len(self._towers) > 1  # SDXL's denoiser reads the last layer but one, without a norm
        states, pooled = [], None
        for tower in self._towers:
            _, model = self._parts[tower.name]
            hidden, pooled = _run(model, tower, windows[tower.name], layer or (-2 if several else -1), not several)
            states.append(hidden.flatten(0, 1).unsqueeze(0).float())
        return PromptStates(torch.cat(states, dim=-1), pooled[:1].float() if several and pooled is not None else None)


def tokenised(tokenizer: Any, text: str) -> list[Token]:
    """The tokens of a text by a tokenizer of transformers."""
    found = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return [Token(i, piece) for i, piece in zip(found, tokenizer.convert_ids_to_tokens(found), strict=True)]


def _run(
    model: Any, tower: Tower, windows: Sequence[Sequence[Token]], layer: int, normed: bool
) -> tuple[Tensor, Tensor | None]:
    """(hidden states, projected state of the end token where there is a projection)"""
    device = next(model.parameters()).device
    ids = [[tower.end if isinstance(t.id, Tensor) else t.id for t in window] for window in windows]
    table = torch.tensor(ids, device=device)
    vectors = [
        (row, place, token.id)
        for row, window in enumerate(windows)
        for place, token in enumerate(window)
        if isinstance(token.id, Tensor)
    ]
    with inserted(model.get_input_embeddings(), vectors):
        found = model(table, output_hidden_states=True)
    hidden = found.hidden_states[layer]
    if normed:
        hidden = getattr(model, "text_model", model).final_layer_norm(hidden)
    projection = getattr(model, "text_projection", None)
    if projection is None:
        return hidden, None
    ends = table == tower.end
    for row, place, _ in vectors:  # vectors have the end's id, having none of their own
        ends[row, place] = False
    last = found.last_hidden_state[torch.arange(len(table)), ends.int().argmax(-1)]
    return hidden, projection(last)


@contextmanager
def inserted(embedding: Any, vectors: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """The embedding layer gives these vectors at their (row, place)."""

    def put(_module: Any, _given: Any, out: Tensor) -> Tensor:
        out = out.clone()
        for row, place, vector in vectors:
            out[row, place] = vector.to(out)
        return out

    handle = embedding.register_forward_hook(put) if vectors else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
