"""Super-resolution: an image enlarged by a network of Real-ESRGAN's family or any other that spandrel reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LikenessError
from .tiles import CPU_TILE, OVERLAP, STEEP, TILE, Side, fitted, tiles_of, upscaled

MOST_PIXELS = 1_000_000_000  # of an enlarged image, 12 GB
LUMA = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A network for super-resolution. `half`: the precisions besides float32 that it can compute in, best first."""

    descriptor: Any  # spandrel's
    half: tuple[torch.dtype, ...]

    @property
    def network(self) -> nn.Module:
        """Its module."""
        return self.descriptor.model

    @property
    def scale(self) -> int:
        """How many times it enlarges."""
        return int(self.descriptor.scale)

    def tile_of(self, height: int, width: int) -> Side:
        """The size of the tiles of an image, on the device where the network lies."""
        on_cpu = next(self.network.parameters()).device.type == "cpu"
        return fitted(height, width, CPU_TILE if on_cpu else TILE)

    def tile_count(self, height: int, width: int) -> int:
        """How many tiles an image of this size is."""
        return sum(1 for _ in tiles_of(height, width, self.tile_of(height, width)))

    @torch.no_grad()
    def enlarge(
        self,
        picture: Tensor,
        half: torch.dtype | None = None,
        after_each: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """An image (H, W, 3), RGB 0..1, `scale` times as large, float32 on the CPU.

        Computes where the network lies, tile by tile. A tile that overflows in half precision is computed again.
        LikenessError for an image that would be too large.
        """
        height, width = picture.shape[0] * self.scale, picture.shape[1] * self.scale
        if height * width > MOST_PIXELS:
            raise LikenessError(
                f"The enlarged image would have {width}x{height} pixels, which is too large: make the image "
                "smaller first, or choose a network that enlarges less."
            )
        device = next(self.network.parameters()).device
        grey = self.descriptor.input_channels == 1
        planes = picture.permute(2, 0, 1)[None]
        if grey:
            planes = (planes * planes.new_tensor(LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)

        def network(window: Tensor) -> Tensor:
            # Convolutions are up to twice as fast so, on CPUs and on GPUs in half precision.
            window = window.to(device).contiguous(memory_format=torch.channels_last)
            if half is not None:
                with torch.autocast(device.type, half):
                    made = self.descriptor(window).float()
                if bool(made.isfinite().all()):
                    return made
            return self.descriptor(window)

        made = upscaled(planes, network, self.scale, self.tile_of(*picture.shape[:2]), OVERLAP, after_each, STEEP)
        if made.is_inference() and not torch.is_inference_mode_enabled():
            made = made.clone()  # spandrel's; nobody could write into it
        return made.clamp_(0, 1).expand(-1, 3, -1, -1)[0].permute(1, 2, 0)


def adopted_upscaler(descriptor: Any) -> Upscaler:
    """The network on ComfyUI's socket UPSCALE_MODEL; LikenessError for what is not one, face restorers among it."""
    network, architecture = getattr(descriptor, "model", None), getattr(descriptor, "architecture", None)
    if not isinstance(network, nn.Module) or not callable(descriptor):
        raise LikenessError(
            f"The input upscale_model holds a {type(descriptor).__name__}: connect ComfyUI's Load Upscale Model."
        )
    if getattr(descriptor, "purpose", "SR") == "FaceSR":
        raise LikenessError(
            f"{getattr(architecture, 'name', 'This network')} restores single faces and ruins whole "
            "images: connect it to the input restorer, and a network such as RealESRGAN_x4plus to upscale_model."
        )
    able = {
        torch.float16: getattr(descriptor, "supports_half", False),
        torch.bfloat16: getattr(descriptor, "supports_bfloat16", False),
    }
    return Upscaler(descriptor, tuple(dtype for dtype, is_able in able.items() if is_able))


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """An image (H, W, C) at another size, by bicubic interpolation that does not alias."""
    if picture.shape[:2] == (height, width):
        return picture
    planes = picture.permute(2, 0, 1)[None]
    made = F.interpolate(planes, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return made[0].permute(1, 2, 0).clamp(0, 1)
