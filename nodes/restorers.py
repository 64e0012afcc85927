"""Face restorers and networks for super-resolution on the sockets, in the care of ComfyUI's memory manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import models_download
from ..errors import logger
from ..injection.comfy.managed import Managed

if TYPE_CHECKING:
    from ..restoration.restorers import FaceRestorer, Wishes
    from ..restoration.upscale import Upscaler

log = logger(__name__)
KIND = "facerestore_models"
SUFFIXES = frozenset({".pth", ".pt", ".ckpt", ".bin", ".safetensors"})
# The first that is here is chosen. What may be used commercially, as far as its authors say, comes first.
PREFERRED = ("GFPGANv1.4.pth", "GFPGANv1.3.pth", "RestoreFormer.pth")
_OTHER_NETWORKS = ("parsing_", "detection_", "yolov5", "79999_iter", "recognition_", "alignment_")
_PER_FACE = 700e6 / 512**2  # bytes for each pixel of a face's crop, at its most
_PER_PIXEL = 512 * 512 * 3 * 4 * 384.0  # bytes for a tile, as the host estimates them, times scale


def restorer_files() -> list[str]:
    """Files that may be restorers, the preferred ones first; the preferred one alone where there is none."""
    found = [
        name
        for name in models_download.list_files(KIND, SUFFIXES)
        if not name.rsplit("/", 1)[-1].lower().startswith(_OTHER_NETWORKS)
    ]
    first = [name for name in PREFERRED if name in found]
    last = [name for name in found if "codeformer" in name.lower()]  # not for commercial use
    return [*first, *(name for name in found if name not in (*first, *last)), *last] or [PREFERRED[0]]


class ManagedRestorer(Managed):
    """A face restorer in the memory manager's care."""

    def __init__(self, restorer: FaceRestorer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(restorer.network.to(dtype))
        self.restorer = restorer

    @property
    def licence(self) -> str:
        """Of its weights, in words."""
        return f"{self.restorer.kind.title}: {self.restorer.kind.licence}"

    def restore(self, crops: Tensor, wishes: Wishes) -> Tensor:
        """See `FaceRestorer.restore`, on the device that the host computes on."""
        device, _ = self.load(_PER_FACE * self.restorer.side**2 * len(crops))
        if device.type != "cpu":
            return self.restorer.restore(crops, wishes)
        # A CPU's caches hold one face: four at once take a fifth longer than one by one (benchmarks/restoration.py).
        made = torch.empty_like(crops)
        for number in range(len(crops)):
            made[number : number + 1] = self.restorer.restore(crops[number : number + 1], wishes)
        return made


_adopted: WeakKeyDictionary[Any, ManagedRestorer] = WeakKeyDictionary()


def restorer_on_socket(value: Any) -> ManagedRestorer:
    """What is on the socket: ours, or the network of ComfyUI's or another pack's loader, wrapped once."""
    if isinstance(value, ManagedRestorer):
        return value
    if value not in _adopted:
        from ..restoration.restorers import adopted_restorer

        _adopted[value] = ManagedRestorer(adopted_restorer(value))
    return _adopted[value]


class ManagedUpscaler(Managed):
    """A network for super-resolution in the memory manager's care."""

    def __init__(self, upscaler: Upscaler, patcher: Any) -> None:
        self.upscaler, self.module, self.patcher = upscaler, upscaler.network, patcher

    def ready(self, fast: bool) -> torch.dtype | None:
        """Load it; returns the half precision to compute in, None for float32: on CPUs, and where `fast` is off."""
        import comfy.model_management as mm

        device, _ = self.load(_PER_PIXEL * max(self.upscaler.scale, 1))
        if not fast or device.type == "cpu":
            return None
        works = {torch.float16: mm.should_use_fp16(device), torch.bfloat16: mm.should_use_bf16(device)}
        return next((dtype for dtype in self.upscaler.half if works[dtype]), None)


_patchers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of descriptions; a patcher holds the network alone


def upscaler_of(value: Any) -> ManagedUpscaler:
    """The network on ComfyUI's socket, with the patcher that newer hosts' loader has made, or one of ours."""
    from ..restoration.upscale import adopted_upscaler

    upscaler = adopted_upscaler(value)
    patcher = getattr(value, "patcher", None) or _patchers.get(value)
    if patcher is None:
        patcher = _patchers[value] = Managed(upscaler.network).patcher
    return ManagedUpscaler(upscaler, patcher)
