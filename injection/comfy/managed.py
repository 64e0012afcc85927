"""Adapters whose weights are in the care of ComfyUI's memory manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import AttentionTerm, Effect
from ...adapters.system import Needs, Request


class Managed:
    """A module whose weights ComfyUI's memory manager loads, offloads and frees."""

    def __init__(self, module: Any) -> None:
        import comfy.model_management as mm
        import comfy.model_patcher as patchers

        device = mm.get_torch_device()
        if mm.is_device_cpu(device):
            module = module.float()  # half precision is slow or missing on CPUs
        self.module = module
        core = getattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)  # newer hosts: shares a card with others
        self.patcher = core(module, load_device=device, offload_device=mm.unet_offload_device())

    def load(self) -> tuple[torch.device, torch.dtype]:
        """Bring the weights to the compute device; returns it and their precision."""
        import comfy.model_management as mm

        mm.load_models_gpu([self.patcher])
        weight = next(self.module.parameters())
        return weight.device, weight.dtype


class ManagedAdapter(Managed):
    """An adapter in the memory manager's care."""

    @property
    def adapter(self) -> Any:
        """The `system.Adapter`, which is a torch module as well."""
        return self.module

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.adapter.name

    @property
    def needs(self) -> Needs:
        """What it has to be given."""
        return self.adapter.needs

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text)"""
        return self.adapter.site_shapes

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a site; see `effects.Projector`."""
        return self.adapter.project(slot, tokens)

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """The adapter's effects, made where ComfyUI computes; its attention terms are projected there as well."""
        self.load()
        with torch.no_grad():
            found = self.adapter.effects(request)
        return tuple(
            replace(effect, projector=self)
            if isinstance(effect, AttentionTerm) and effect.projector is self.adapter
            else effect
            for effect in found
        )
