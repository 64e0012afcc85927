"""The base model: the denoiser and the text encoder together, from captions, on the latents of drawn people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...injection.diffusers import inject
from ...injection.plan import Injection, Role, uniform
from ...injection.sites import sites_of_diffusers_unet
from ...training.loop import Average, Run, rows_of_step
from ..captions import TEMPLATES, caption
from ..corpus import Corpus
from ..latents import PatchCodec
from ..networks import Scaffold, build_text_encoder, build_tokenizer, build_unet, noise_schedule

BATCH = 48
LEARNING_RATE = 1e-3
DROPPED = 0.1  # of the captions, for guidance without a classifier


class Captions:
    """Token ids of every picture's caption in every template, and of no caption."""

    def __init__(self, corpus: Corpus) -> None:
        tokenizer = build_tokenizer()
        described = [corpus.shots.describe(row) for row in range(len(corpus))]
        self.ids = np.stack([_ids(tokenizer, [caption(d, i) for d in described]) for i in range(len(TEMPLATES))])
        self.empty = _ids(tokenizer, [""])[0]
        self.person = tokenizer.convert_tokens_to_ids("person</w>")

    def of(self, rows: np.ndarray, random: torch.Generator, dropped: Tensor) -> Tensor:
        """Ids (B, 77) of these pictures, each in a random template; those that are dropped (B,) empty."""
        template = torch.randint(len(TEMPLATES), (len(rows),), generator=random).numpy()
        ids = self.ids[template, rows].astype(np.int64)
        ids[dropped.numpy()] = self.empty
        return torch.from_numpy(ids)

    def with_words(self, ids: Tensor, words: int) -> tuple[Tensor, Tensor]:
        """Room for `words` more words before "person": the longer ids (B, 77), and the words' places (B, words).

        A caption without the word, the empty one, gets them at its beginning.
        """
        hits = ids == self.person
        at = torch.where(hits.any(1), hits.int().argmax(1), 1)
        column = torch.arange(ids.shape[1])
        source = torch.where(column < at[:, None], column, (column - words).clamp_min(0))
        return ids.gather(1, source), at[:, None] + torch.arange(words)


def _ids(tokenizer: Any, texts: list[str]) -> np.ndarray:
    encoded = tokenizer(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    return np.asarray(encoded, dtype=np.int16)


@contextmanager
def spoken(text_encoder: nn.Module, at: Tensor, words: Tensor) -> Iterator[None]:
    """Within: the words at these places (B, n) of every prompt mean these vectors (B, n, width)."""
    embedding = next(m for name, m in text_encoder.named_modules() if name.endswith("token_embedding"))

    def put(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.scatter(1, at[..., None].expand(-1, -1, output.shape[-1]), words)

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def encode_corpus(codec: PatchCodec, corpus: Corpus) -> Tensor:
    """Latents (N, 16, 16, 16) float16 of all pictures."""
    latents = [
        codec.encoder(torch.from_numpy(corpus.rgb[start : start + 512]).permute(0, 3, 1, 2) / 127.5 - 1).half()
        for start in range(0, len(corpus), 512)
    ]
    return torch.cat(latents)


class BaseTraining:
    """Half of every batch knows its captions alone, the other half also who is drawn (see `Scaffold`)."""

    def __init__(self, corpus: Corpus, codec: PatchCodec, folder: Path, steps: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.unet, self.text_encoder = build_unet(), build_text_encoder()
        self.scaffold = Scaffold(self.unet)
        self.schedule = noise_schedule()
        self.corpus, self.seed = corpus, seed
        self.latents = encode_corpus(codec, corpus)
        self.weight = torch.from_numpy(corpus.weight).float()
        self.traits = torch.from_numpy(corpus.people.vectors())
        self.captions = Captions(corpus)
        modules = {"unet": self.unet, "text_encoder": self.text_encoder, "scaffold": self.scaffold}
        for module in modules.values():
            module.train()
        averages = {name: Average(modules[name], 0.999) for name in ("unet", "text_encoder", "scaffold")}
        parameters = [p for module in modules.values() for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        self.run = Run(folder, modules, optimizer, steps, seed, averages=averages)
        nobody = self.scaffold.as_tokens(self.traits[:1])
        self.somebody = Injection(self.scaffold.adapter, nobody, uniform(1.0, sites_of_diffusers_unet(self.unet)))

    def loss(self, step: int, random: torch.Generator) -> Tensor:
        """The mean squared error of the velocity; the face counts four times as much as the background."""
        rows = rows_of_step(step, BATCH, len(self.corpus), self.seed)
        anonymous, told = rows[: BATCH // 2], rows[BATCH // 2 :]
        return (self._error(anonymous, random) + self._error(told, random, as_words=step % 2 == 0)) / 2

    def _error(self, rows: np.ndarray, random: torch.Generator, as_words: bool | None = None) -> Tensor:
        dropped = torch.rand(len(rows), generator=random) < DROPPED
        ids = self.captions.of(rows, random, dropped)
        z0 = self.latents[rows].float()
        noise = torch.randn(z0.shape, generator=random)
        t = torch.randint(len(self.schedule), (len(rows),), generator=random)
        with ExitStack() as telling:
            if as_words is True:
                ids, at = self.captions.with_words(ids, Scaffold.WORDS)
                telling.enter_context(spoken(self.text_encoder, at, self.scaffold.as_words(self.traits[rows])))
            elif as_words is False:
                person = replace(self.somebody, tokens=self.scaffold.as_tokens(self.traits[rows]))
                telling.callback(inject(self.unet, [person], roles=(Role.COND,), live=True).eject)
            context = self.text_encoder(ids).last_hidden_state
            predicted = self.unet(self.schedule.add_noise(z0, noise, t), t, encoder_hidden_states=context).sample
        weight = self.weight[rows][:, None]
        error = (predicted - self.schedule.target(z0, noise, t)).square()
        return (weight * error).mean() / weight.mean()
