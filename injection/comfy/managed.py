"""Adapters, and the encoders they read, whose weights are in the care of ComfyUI's memory manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import AttentionTerm, BlockTerm, Effect
from ...adapters.eva_clip import EvaFeatures
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

    def load(self, memory: float = 0.0) -> tuple[torch.device, torch.dtype]:
        """Bring the weights to the compute device, with room for this many more bytes; returns it and their
        precision."""
        import comfy.model_management as mm

        mm.load_models_gpu([self.patcher], memory_required=memory)
        weight = next(self.module.parameters())
        return weight.device, weight.dtype


class AdapterFront:
    """What every adapter says of itself, through whatever holds it."""

    @property
    def adapter(self) -> Any:
        """The `system.Adapter`."""
        raise NotImplementedError

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


class BareAdapter(AdapterFront):
    """An adapter without weights of its own."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    @property
    def adapter(self) -> Any:
        """The `system.Adapter`."""
        return self._adapter

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """The adapter's effects."""
        with torch.no_grad():
            return self._adapter.effects(request)


class ManagedAdapter(Managed, AdapterFront):
    """An adapter in the memory manager's care."""

    @property
    def adapter(self) -> Any:
        """The `system.Adapter`, which is a torch module as well."""
        return self.module

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a site; see `effects.Projector`."""
        return self.adapter.project(slot, tokens)

    @property
    def width(self) -> int:
        """Of the image's tokens that its modules read; see `effects.BlockModules`."""
        return self.adapter.width

    def prepare(self, number: int, tokens: Tensor) -> Tensor:
        """What a module makes of tokens alone; see `effects.BlockModules`."""
        return self.adapter.prepare(number, tokens)

    def residual(self, number: int, images: Tensor, prepared: Tensor) -> Tensor:
        """What a module adds to the image's tokens; see `effects.BlockModules`."""
        return self.adapter.residual(number, images, prepared)

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """The adapter's effects, made where ComfyUI computes; what its weights do later is done there as well."""
        self.load()
        with torch.no_grad():
            found = self.adapter.effects(request)
        return tuple(self._managed(effect) for effect in found)

    def _managed(self, effect: Effect) -> Effect:
        match effect:
            case AttentionTerm() if effect.projector is self.adapter:
                return replace(effect, projector=self)
            case BlockTerm() if effect.modules is self.adapter:
                return replace(effect, modules=self)
        return effect


class ManagedEvaTower(Managed):
    """EVA02-CLIP's image encoder; an `eva_clip.EvaTower` whose weights are on the GPU only while it runs."""

    @property
    def name(self) -> str:
        """The file's, for messages."""
        return self.module.name

    @property
    def image_size(self) -> int:
        """Side of the images it reads."""
        return self.module.image_size

    @property
    def widths(self) -> tuple[int, int]:
        """(of the hidden states, of the pooled embedding)"""
        return self.module.widths

    def encode_pixels(self, pixels: Tensor) -> EvaFeatures:
        """Pixels normalised as CLIP's (B, 3, S, S) -> features, float32, on the CPU."""
        self.load()
        return self.module.encode_pixels(pixels).to("cpu")
