"""Adapters, and the encoders they read, whose weights are in the care of ComfyUI's memory manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...adapters.effects import AttentionTerm, BlockTerm, Effect, Prepared
from ...adapters.eva_clip import EvaFeatures
from ...adapters.system import Needs, Request
from ...adapters.types import IdentityTokens
from ..plan import Role


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

    @property
    def at_every_step(self) -> bool:
        """Whether its modules run at every step; see `effects.BlockModules`."""
        return self.adapter.at_every_step

    def prepare(self, number: int, tokens: Tensor) -> Prepared:
        """What a module makes of tokens alone; see `effects.BlockModules`."""
        return self.adapter.prepare(number, tokens)

    def residual(self, number: int, images: Tensor, prepared: Prepared) -> Tensor:
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


class PreparedTokens(nn.Module):
    """What the modules behind a DiT's blocks have made of one person's tokens, each half for itself."""

    def __init__(self, made: Mapping[tuple[int, Role], Prepared]) -> None:
        super().__init__()
        self._names: dict[tuple[int, Role], list[str]] = {}
        for (number, role), tensors in made.items():
            names = self._names[number, role] = [f"{role.name.lower()}_{number}_{i}" for i in range(len(tensors))]
            for name, tensor in zip(names, tensors, strict=True):
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def of(self, number: int, role: Role) -> Prepared:
        """What a module made of a half, where the host keeps it now."""
        return tuple(self.get_parameter(name) for name in self._names[number, role])


class ManagedTokens(Managed):
    """Prepared tokens in the memory manager's care, which come and go with the MODEL they are for."""

    module: PreparedTokens


# As long as a MODEL carries the person, whatever is changed about scope and strength.
_prepared: WeakKeyDictionary[IdentityTokens, dict[Any, ManagedTokens]] = WeakKeyDictionary()


def prepared_tokens(term: BlockTerm, dtype: torch.dtype) -> ManagedTokens:
    """What the term's modules make of its tokens, made once, where the modules' weights are; kept in `dtype`, or in
    theirs where they run at every step."""
    numbers = tuple(sorted(set(term.numbers.values())))
    known = _prepared.setdefault(term.tokens, {})
    key = (term.modules, numbers, dtype)
    if key not in known:
        modules = term.modules
        tokens = term.tokens.to(*modules.load()) if isinstance(modules, ManagedAdapter) else term.tokens
        kept = tokens.cond.dtype if modules.at_every_step else dtype
        halves = {Role.COND: tokens.cond, Role.UNCOND: tokens.uncond}
        with torch.no_grad():
            made = {
                (number, role): tuple(t.to("cpu", kept) for t in modules.prepare(number, half))
                for number in numbers
                for role, half in halves.items()
            }
        known[key] = ManagedTokens(PreparedTokens(made))
    return known[key]


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
