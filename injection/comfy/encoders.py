"""ComfyUI's encoders behind the protocols that adapters read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...adapters.clip_vision import ClipFeatures, EncoderSize
from ...errors import LikenessError


class ComfyClipEncoder:
    """ComfyUI's CLIP_VISION. Its weights stay in the care of ComfyUI's memory manager."""

    def __init__(self, clip_vision: Any) -> None:
        """Raises LikenessError when the socket holds something else than a CLIP image encoder."""
        model = getattr(clip_vision, "model", None)
        projection = getattr(getattr(model, "visual_projection", None), "weight", None)
        if projection is None:
            raise LikenessError(
                f"the CLIP vision model is {type(model).__name__}, which is not a CLIP image encoder: "
                "load one such as CLIP-ViT-H-14 with Load CLIP Vision."
            )
        embed, hidden = projection.shape
        self._clip_vision = clip_vision
        self._size = EncoderSize(hidden, embed, clip_vision.image_size)

    @property
    def size(self) -> EncoderSize:
        """Its widths and picture size."""
        return self._size

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        """Normalised pixel values (B, 3, S, S) -> features, float32, on ComfyUI's intermediate device."""
        import comfy.model_management as mm

        mm.load_model_gpu(self._clip_vision.patcher)
        pixels = pixels.to(self._clip_vision.load_device, torch.float32)
        _, penultimate, embeds, _ = self._clip_vision.model(pixel_values=pixels, intermediate_output=-2)
        device = mm.intermediate_device()
        return ClipFeatures(embeds.to(device, torch.float32), penultimate.to(device, torch.float32))
