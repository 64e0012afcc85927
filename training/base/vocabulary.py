"""New words in a text encoder's language, and the vectors that stand for them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import LikenessError
from ...weights.embedding_files import TokenEmbedding
from ...weights.families import CLIP_L
from ..objectives.token_embeddings import CLIP_L_NORM
from .model import BaseModel, TextTower
from .placeholders import PlaceholderEmbedding


@dataclass(frozen=True)
class NewToken:
    """A word to learn. start: words whose vectors it starts from, in turn, or, where they are more than its own, from
    their means; or vectors of an earlier training; or None: chance, N(0, std²), std None being that of the encoder's
    whole table."""

    name: str
    vectors: int = 1
    start: str | TokenEmbedding | None = None
    std: float | None = None

    @property
    def words(self) -> list[str]:
        """One entry of the tokenizer per vector, spelled like nothing a prompt would hold."""
        return [f"<|{self.name}:{number}|>" for number in range(self.vectors)]


class Vocabulary:
    """New tokens in all of a model's text encoders: `rows` are what is trained, by the encoder's kind."""

    def __init__(self, base: BaseModel, tokens: Sequence[NewToken], seed: int = 0) -> None:
        """Teach the encoders the tokens. Their tokenizers are copied first. Raises LikenessError when a token is
        already a word, or its starting vectors are of another model."""
        self.tokens = {token.name: token for token in tokens}
        self._base = base
        for token in tokens:
            check_new(token, base.text)
        words = [word for token in tokens for word in token.words]
        self.rows: dict[str, nn.Parameter] = {}
        for tower in base.text:
            random = torch.Generator().manual_seed(seed)
            first = torch.cat([first_values(token, tower, random) for token in tokens])
            tower.tokenizer = copy.deepcopy(tower.tokenizer)
            tower.tokenizer.add_tokens(words)
            ids = tower.tokenizer.convert_tokens_to_ids(words)
            tower.words = [tower.tokenizer.convert_tokens_to_ids(token.words) for token in tokens]
            table = tower.encoder.get_input_embeddings()
            learned = PlaceholderEmbedding(table, ids, first).to(table.weight.device)
            tower.encoder.set_input_embeddings(learned)
            self.rows[tower.kind] = learned.rows
        base.spell = self.spell

    def remove(self) -> None:
        """Give the encoders their own tables back."""
        for tower in self._base.text:
            tower.encoder.set_input_embeddings(tower.encoder.get_input_embeddings().table)
            tower.words = ()
        self._base.spell = str

    def usual_norm(self, kind: str) -> float:
        """How long the words of an encoder are: what learned rows may be pulled to."""
        table = self._table(kind).weight
        return CLIP_L_NORM if table.shape[1] == CLIP_L.width else float(table.float().norm(dim=1).mean())

    def usual_deviation(self, kind: str) -> float:
        """The standard deviation of all elements of an encoder's own table."""
        return float(self._table(kind).weight.float().std())

    def _table(self, kind: str) -> nn.Embedding:
        tower = next(tower for tower in self._base.text if tower.kind == kind)
        return tower.encoder.get_input_embeddings().table

    def spell(self, prompt: str) -> str:
        """The prompt with every token written as its entries in the tokenizer."""
        for token in self.tokens.values():
            prompt = mentions(token.name).sub(" ".join(token.words), prompt)
        return prompt

    def ids(self, name: str) -> list[int]:
        """A token's ids, one per vector, in the first text encoder."""
        return self._base.text[0].tokenizer.convert_tokens_to_ids(self.tokens[name].words)

    def embedding(self, name: str) -> TokenEmbedding:
        """A token's vectors as they are now."""
        names = list(self.tokens)
        start = sum(self.tokens[other].vectors for other in names[: names.index(name)])
        span = slice(start, start + self.tokens[name].vectors)
        return TokenEmbedding({kind: rows.detach()[span].cpu().clone() for kind, rows in self.rows.items()})


def require_one_token(base: BaseModel, word: str, what: str) -> None:
    """LikenessError, beginning with what the word is, where a text encoder does not read it as a single token."""
    for tower in base.text:
        ids = tower.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids == [tower.tokenizer.unk_token_id]:
            pieces = ", ".join(tower.tokenizer.convert_ids_to_tokens(ids))
            raise LikenessError(
                f"{what} is {len(ids)} tokens ({pieces}): choose one that is a single token, such as 'person'."
            )


def mentions(name: str) -> re.Pattern[str]:
    """Where a prompt holds this word by itself, in any case."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def check_new(token: NewToken, towers: Sequence[TextTower]) -> None:
    """LikenessError for a token without a name or vectors, or that is a word already."""
    if token.vectors < 1 or not token.name.strip() or token.name != token.name.strip():
        raise LikenessError(f"The token '{token.name}' needs a name without spaces around it and at least one vector.")
    for tower in towers:
        known = tower.tokenizer.get_vocab()
        if any(word in known for word in (token.name, f"{token.name}</w>", f"{token.name.lower()}</w>", *token.words)):
            raise LikenessError(
                f"The placeholder token '{token.name}' is already a word of the text encoder: choose one that means "
                f"nothing, such as '<{token.name.strip('<>')}-person>'."
            )


def first_values(token: NewToken, tower: TextTower, random: torch.Generator) -> Tensor:
    """What a token starts from in a text encoder: (vectors, dim), float32. LikenessError when that is unknown."""
    table: Tensor = tower.encoder.get_input_embeddings().weight.detach().float()
    if token.start is None:
        std = float(table.std()) if token.std is None else token.std
        return torch.randn(token.vectors, table.shape[1], generator=random).to(table.device) * std
    if isinstance(token.start, str):
        ids = tower.tokenizer(token.start, add_special_tokens=False).input_ids
        if not ids or ids == [tower.tokenizer.unk_token_id]:
            raise LikenessError(
                f"The word '{token.start}' that '{token.name}' should start from is not a word that the text encoder "
                "knows: choose a common word such as 'person'."
            )
        if len(ids) > token.vectors:  # none is left out
            return torch.stack([table[part].mean(0) for part in torch.tensor(ids).tensor_split(token.vectors)])
        return table[[ids[number % len(ids)] for number in range(token.vectors)]]
    given = token.start.vectors.get(tower.kind)
    if given is None or given.shape != (token.vectors, table.shape[1]):
        has = ", ".join(f"{kind} {tuple(rows.shape)}" for kind, rows in token.start.vectors.items())
        raise LikenessError(
            f"The vectors that '{token.name}' should start from ({has}) are of another base model: this one needs "
            f"{tower.kind} ({token.vectors}, {table.shape[1]}), so choose an embedding that was trained for it."
        )
    return given.float().to(table.device)
