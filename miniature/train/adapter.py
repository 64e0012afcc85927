"""The FaceID adapter, by the official recipe: the base is frozen, the reference is another photo of the person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapters import build
from ...adapters.effects import AttentionTerm
from ...adapters.ip_adapter.evidence import Evidence
from ...injection.diffusers import inject
from ...injection.plan import Role, uniform
from ...injection.sites import AttentionSite, sites_of_diffusers_unet
from ...training.ip_adapter import drop_images, fresh_faceid, make_trainable, official_weights
from ...training.loop import Average, Run, rows_of_step
from ...training.muon import muon_and_adamw
from ...training.team import Team
from ..models.latents import PatchCodec
from ..models.networks import EMBEDDING
from .corpus import Corpus
from .denoising import Denoising

BATCH = 64
LEARNING_RATE = 1e-3
MOST_REFERENCES = 4
# As the official trainer: the image alone, the text alone, or both are left out of one image in twenty each.
_NO_IMAGE, _NO_TEXT, _NEITHER = 0.05, 0.05, 0.05


class Parameters(nn.Module):
    """Trained parameters under their official keys, as a module that can be saved and averaged."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({key.replace(".", "/"): value for key, value in parameters.items()})


class AdapterTraining:
    """Targets in every style; references are photos only, one to four of them, as a user would give."""

    def __init__(
        self, unet: Any, text_encoder: Any, targets: Corpus, embeddings: np.ndarray, codec: PatchCodec, folder: Path,
        steps: int, seed: int = 0, team: Team | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        """embeddings: (people of `targets`, photos, 512) of other photos of the same people."""
        torch.manual_seed(seed)
        self.unet, self.text_encoder, self.targets, self.seed = unet, text_encoder.to(device), targets, seed
        self.adapter = build(fresh_faceid(unet, EMBEDDING), "ip-adapter-faceid_miniature")
        parameters = make_trainable(self.adapter, unet)
        for module in (self.adapter, unet):
            module.to(device)
        nobody = self._tokens(torch.zeros(1, EMBEDDING, device=device))
        self.injection = AttentionTerm(self.adapter, nobody, uniform(1.0, self._sites))
        self.injected = inject(unet, [self.injection], roles=(Role.COND,), live=True)
        matrices = [p for p in parameters.values() if p.ndim > 1]
        others = [p for p in parameters.values() if p.ndim < 2]
        optimizer = muon_and_adamw(matrices, others, LEARNING_RATE, team)
        trained = Parameters(parameters)
        averages = {"adapter": Average(trained, 0.999)}
        self.run = Run(
            folder, {"adapter": trained}, optimizer, steps, seed, averages=averages, team=team or Team(), device=device
        )
        self.denoising = Denoising(targets, codec, device)
        self.embeddings = F.normalize(torch.from_numpy(embeddings).to(device), dim=-1)
        self.person = targets.person

    @property
    def _sites(self) -> tuple[AttentionSite, ...]:
        return sites_of_diffusers_unet(self.unet)

    def _tokens(self, embeddings: Tensor) -> Any:
        return self.adapter.tokens(Evidence(id_embeds=embeddings))

    def references(self, rows: np.ndarray, random: torch.Generator) -> Tensor:
        """The unit mean (B, 512) of one to four photos of each image's person."""
        photos = self.embeddings[self.person[rows]]
        count = 1 + torch.randint(MOST_REFERENCES, (len(rows), 1), generator=random, device=random.device)
        order = torch.rand(photos.shape[:2], generator=random, device=random.device).argsort(1).argsort(1)
        return F.normalize((photos * (order < count)[..., None]).sum(1), dim=-1)

    def loss(self, step: int, random: torch.Generator) -> Tensor:
        """The velocity's mean squared error, the face counting more, as for the base."""
        rows = self.run.team.part(rows_of_step(step, BATCH, len(self.targets), self.seed))
        fate = torch.rand(len(rows), generator=random, device=random.device)
        no_image = fate < _NO_IMAGE + _NEITHER
        no_text = (fate >= _NO_IMAGE) & (fate < _NO_IMAGE + _NEITHER + _NO_TEXT)
        ids = self.denoising.captions.of(rows, random, dropped=no_text)
        evidence = drop_images(Evidence(id_embeds=self.references(rows, random)), no_image)
        self.injected.injections = [replace(self.injection, tokens=self.adapter.tokens(evidence))]
        with torch.no_grad():
            context = self.text_encoder(ids).last_hidden_state
        return self.denoising.error(self.unet, rows, context, random)

    def weights(self) -> dict[str, Tensor]:
        """The averaged adapter under the official keys."""
        with self.run.averages["adapter"].applied(self.run.modules["adapter"]):
            return official_weights(self.adapter, self.unet)
