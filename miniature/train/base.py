"""The base model: the denoiser and the text encoder together, from captions, on the latents of drawn people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...adapters.effects import AttentionTerm
from ...injection.diffusers import inject
from ...injection.plan import Role, uniform
from ...injection.sites import sites_of_diffusers_unet
from ...training.loop import Average, Run, rows_of_step
from ...training.muon import muon_and_adamw, split_parameters
from ...training.team import Team
from ..models.latents import PatchCodec
from ..models.networks import Scaffold, build_text_encoder, build_unet
from .corpus import Corpus
from .denoising import Denoising

BATCH = 64
LEARNING_RATE = 1e-3
DROPPED = 0.1  # of the captions, for guidance without a classifier


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


class BaseTraining:
    """Half of every batch knows its captions alone, the other half also who is drawn (see `Scaffold`)."""

    def __init__(
        self, corpus: Corpus, codec: PatchCodec, folder: Path, steps: int, seed: int = 0, team: Team | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.unet, self.text_encoder = build_unet(), build_text_encoder()
        self.scaffold = Scaffold(self.unet)
        self.corpus, self.seed = corpus, seed
        self.denoising = Denoising(corpus, codec, device)
        self.traits = torch.from_numpy(corpus.people.vectors()).to(device)
        modules = {"unet": self.unet, "text_encoder": self.text_encoder, "scaffold": self.scaffold}
        for module in modules.values():
            module.to(device).train()
        averages = {name: Average(modules[name], 0.999) for name in ("unet", "text_encoder", "scaffold")}
        team = team or Team()
        matrices, others = split_parameters(modules.values(), ends=(self.unet.conv_in, self.unet.conv_out))
        optimizer = muon_and_adamw(matrices, others, LEARNING_RATE, team)
        self.run = Run(folder, modules, optimizer, steps, seed, averages=averages, team=team, device=device)
        nobody = self.scaffold.as_tokens(self.traits[:1])
        self.somebody = AttentionTerm(self.scaffold.adapter, nobody, uniform(1.0, sites_of_diffusers_unet(self.unet)))

    def loss(self, step: int, random: torch.Generator) -> Tensor:
        """The mean of both halves' errors."""
        rows = rows_of_step(step, BATCH, len(self.corpus), self.seed)
        anonymous, told = (self.run.team.part(half) for half in (rows[: BATCH // 2], rows[BATCH // 2 :]))
        return (self._error(anonymous, random) + self._error(told, random, as_words=step % 2 == 0)) / 2

    def _error(self, rows: np.ndarray, random: torch.Generator, as_words: bool | None = None) -> Tensor:
        dropped = torch.rand(len(rows), generator=random, device=random.device) < DROPPED
        ids = self.denoising.captions.of(rows, random, dropped)
        with ExitStack() as telling:
            if as_words is True:
                ids, at = self.denoising.captions.with_words(ids, Scaffold.WORDS)
                telling.enter_context(spoken(self.text_encoder, at, self.scaffold.as_words(self.traits[rows])))
            elif as_words is False:
                person = replace(self.somebody, tokens=self.scaffold.as_tokens(self.traits[rows]))
                telling.callback(inject(self.unet, [person], roles=(Role.COND,), live=True).eject)
            context = self.text_encoder(ids).last_hidden_state
            return self.denoising.error(self.unet, rows, context, random)
