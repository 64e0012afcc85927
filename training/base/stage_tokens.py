"""A word that is another one at every stage of denoising, and for values another one than for keys (SeFi-IDE)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ...adapters.sefi_ide.networks import TokenGenerator, stage_of
from ...injection.key_values import separate_values
from ...weights.embedding_files import TokenEmbedding
from .model import BaseModel, Conditioning, TextTower
from .placeholders import PlaceholderEmbedding
from .vocabulary import NewToken, check_new, first_values, mentions, require_one_token

REMEMBERED = 64  # prompts


class StageTokens:
    """The tokens of a subject in all of a model's text encoders: 2S of each, (stages, 2, dim), [s, 0] for keys and
    [s, 1] for values.

    What prompts call the subject is one entry of the tokenizer; its id and those after it are the tokens. start: the
    word, or the vector of an earlier training, that all of them start from. generated: whether a network makes them.
    dropout: how much of them is zero while they are trained.
    """

    def __init__(
        self,
        base: BaseModel,
        word: str,
        class_word: str,
        start: str | TokenEmbedding,
        stages: int,
        generated: bool,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Teach the encoders the word; their tokenizers are copied first. Raises LikenessError when it is a word
        already, or when one of the other two is not a single token."""
        require_one_token(base, class_word, f"The class word {class_word!r}")
        if isinstance(start, str):
            require_one_token(base, start, f"The word {start!r} that {word} should start from")
        token = NewToken(word, 1, start)
        check_new(token, base.text)
        self.stages = stages
        self._base, self._mention = base, mentions(word)
        self._entry = token.words[0]
        random = torch.Generator().manual_seed(seed)
        rows = [first_values(token, tower, random) for tower in base.text]
        for tower, row in zip(base.text, rows, strict=True):
            tower.tokenizer = copy.deepcopy(tower.tokenizer)
            tower.tokenizer.add_tokens([self._entry])
            first = tower.tokenizer.convert_tokens_to_ids(self._entry)
            tower.words = [[first]]
            table = tower.encoder.get_input_embeddings()
            tokens = _Generated(row[0], stages, seed) if generated else nn.Identity()
            made_by = nn.Sequential(tokens, nn.Dropout(dropout))
            learned = PlaceholderEmbedding(table, range(first, first + 2 * stages), row.repeat(2 * stages, 1), made_by)
            tower.encoder.set_input_embeddings(learned.to(table.weight.device))
        self._class_ids = [tower.tokenizer(class_word, add_special_tokens=False).input_ids[0] for tower in base.text]
        self._prompts = lru_cache(REMEMBERED)(self._look_at)
        base.spell = lambda prompt: self._mention.sub(self._entry, prompt)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        found = {}
        for tower in self._base.text:
            embedding = _embedding(tower)
            made_by = dict(embedding.made_by.named_parameters()) or {"rows": embedding.rows}
            found |= {f"{tower.kind}.{name}": parameter for name, parameter in made_by.items()}
        return found

    def tables(self) -> dict[str, Tensor]:
        """The tokens as they are now, by the encoder's kind: (stages, 2, dim)."""
        with torch.no_grad():
            found = {tower.kind: _embedding(tower).eval().vectors() for tower in self._base.text}
        return {kind: vectors.cpu().unflatten(0, (self.stages, 2)).clone() for kind, vectors in found.items()}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it, the base model reads prompts with these tokens, by the stage of the timestep."""
        before, self._base.staged = self._base.staged, self.read
        try:
            with separate_values(self._base.unet):
                yield
        finally:
            self._base.staged = before
            self._prompts.cache_clear()

    def read(self, prompts: Sequence[str], t: Tensor) -> Conditioning:
        """Prompts at timesteps (batch,): keys of one pass of the text encoders, values of another. What pools the text
        is, as the reference of attention maps, the prompt of the class; prompts without the word are their own.

        Of a long prompt only the chunks with the word go through the encoders again."""
        known = [self._prompts(prompt) for prompt in prompts]
        parts = [prompt.as_class for prompt in known]
        named = [number for number, prompt in enumerate(known) if prompt.places]
        if named:
            stages = stage_of(t, self.stages, len(self._base.schedule))
            chunks = []
            for index, tower in enumerate(self._base.text):
                first = _first(tower)
                ids = [(known[n].ids[index], first + 2 * stages[n]) for n in named]
                chunks.append([torch.where(each == first, at + part, each) for part in (0, 1) for each, at in ids])
            keys, values = self._base.encode_ids(chunks).states.chunk(2)
            for number, key, value in zip(named, keys, values, strict=True):
                prompt, plain = known[number], parts[number]
                key, value = prompt.with_chunks(key), prompt.with_chunks(value)
                parts[number] = replace(plain, states=key, values=value, reference=plain.states)
        return Conditioning.joined(parts)

    def _look_at(self, prompt: str) -> _Prompt:
        """What of a prompt is the same in every step."""
        ids = [tower.chunks(self._base.spell(prompt)) for tower in self._base.text]
        firsts = [_first(tower) for tower in self._base.text]
        says = torch.stack([(each == first).any(1) for each, first in zip(ids, firsts, strict=True)]).any(0)
        as_class = [
            [torch.where(each == first, word, each)]
            for each, first, word in zip(ids, firsts, self._class_ids, strict=True)
        ]
        device = self._base.unet.device
        # What is read once and remembered must not take random numbers from the steps that read it.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            plain = self._base.encode_ids(as_class)
        return _Prompt([each[says] for each in ids], says.nonzero().flatten().tolist(), plain)


@dataclass(frozen=True, eq=False)
class _Prompt:
    """ids: of the chunks that say the word, (n, length), in every text encoder. places: the numbers of these chunks.
    as_class: the prompt with the class word in the subject's place, token by token."""

    ids: Sequence[Tensor]
    places: list[int]
    as_class: Conditioning

    def with_chunks(self, states: Tensor) -> Tensor:
        """(1, tokens, dim): the class prompt's with these chunks', (n · length or more, dim), in their places."""
        length = self.ids[0].shape[1]
        chunks = list(self.as_class.states[0].split(length))
        for place, own in zip(self.places, states.split(length), strict=False):
            chunks[place] = own
        return torch.cat(chunks)[None]


class _Generated(nn.Module):
    """Makes the tokens from the word that they start from."""

    def __init__(self, row: Tensor, stages: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = TokenGenerator(len(row), stages)
        self.generator.start_near(row.cpu())

    def forward(self, rows: Tensor) -> Tensor:
        return self.generator(rows[:1].unsqueeze(0)).flatten(0, 1)


def _embedding(tower: TextTower) -> PlaceholderEmbedding:
    found = tower.encoder.get_input_embeddings()
    assert isinstance(found, PlaceholderEmbedding)
    return found


def _first(tower: TextTower) -> int:
    """The id of the subject's first token."""
    return tower.words[0][0]
