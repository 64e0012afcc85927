"""IP-Adapter: one official training step through the diffusers binding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from torch import Tensor

from likeness.adapters import Evidence, build
from likeness.adapters.effects import AttentionTerm
from likeness.injection.diffusers import inject
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.training.ip_adapter import drop_images, make_trainable
from likeness.training.objectives.reconstruction import squared_error


class Step:
    """The batch of a case, an adapter in a UNet, and the prediction they give."""

    def __init__(self, case: Any) -> None:
        given, schedule = case.inputs, common.schedule_of(case.config)
        self.unet = common.unet_of(case)
        adapter = build({k: v for k, v in case.weights.items() if not k.startswith("unet.")}, case.variant)
        self.trained = make_trainable(adapter, self.unet)
        embeds, dropped = given["image_embeds"], given["drop_image"].bool()
        evidence = Evidence(id_embeds=embeds) if adapter.needs_embedding else Evidence(features=embeds)
        self.adapter, self.evidence = adapter, drop_images(evidence, dropped)
        self.noisy = schedule.add_noise(given["latents"], given["noise"], given["timesteps"])
        self.given = given
        sites = sites_of_diffusers_unet(self.unet)
        self.injection = AttentionTerm(adapter, adapter.tokens(self.evidence), uniform(1.0, sites))
        self.injected = inject(self.unet, [self.injection], roles=(Role.COND,), live=True)

    def prediction(self) -> Tensor:
        self.injected.injections = [replace(self.injection, tokens=self.adapter.tokens(self.evidence))]
        return self.unet(self.noisy, self.given["timesteps"], self.given["text"]).sample

    def loss(self) -> tuple[Tensor, Tensor]:
        prediction = self.prediction()
        return squared_error(prediction, self.given["noise"]).mean(), prediction


@harness.runs("ip_adapter", r"training gradients, .*")
def gradients(case: Any) -> dict[str, Tensor]:
    step = Step(case)
    values = torch.autograd.grad(step.loss()[0], list(step.trained.values()))
    return {name: 1000 * value for name, value in zip(step.trained, values, strict=True)}


@harness.runs("ip_adapter", r"training objective, .*")
def objective(case: Any) -> dict[str, Tensor]:
    step, config = Step(case), case.config
    optimiser = torch.optim.AdamW(
        step.trained.values(),
        lr=config["lr"],
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["weight_decay"],
    )
    losses, first = [], None
    for _ in range(config["steps"]):
        loss, prediction = step.loss()
        first = prediction.detach() if first is None else first
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert first is not None
    return {"loss": torch.stack(losses), "noisy_latents": step.noisy, "prediction": first}
