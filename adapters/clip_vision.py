"""CLIP image encoders: ComfyUI's CLIP_VISION socket and a transformers model behind one face.

Adapters read two things of an image: the pooled embedding, projected into CLIP's shared space, and the hidden states
of the last layer but one, every token, without the final LayerNorm (official IP-Adapter, arXiv 2308.06721 and code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import LikenessError
from .image_prep import Crop, merge_tile_embeds, merge_tile_hidden, pixel_values, split_tiles, to_square


@dataclass(frozen=True)
class ClipFeatures:
    """What an encoder says of a batch of images.

    image_embeds: (B, embed), pooled and projected. penultimate: (B, 1 + patches, hidden), the class token first.
    """

    image_embeds: Tensor
    penultimate: Tensor


@dataclass(frozen=True)
class EncoderSize:
    """The widths of an encoder, and the side of the images it reads in pixels."""

    hidden: int
    embed: int
    image_size: int

    @property
    def name(self) -> str:
        """What people call it: "ViT-H/14", or its widths when it is none of the published ones."""
        for name, size in PUBLISHED.items():
            if size == self:
                return name
        return f"an encoder of widths {self.hidden} and {self.embed} at {self.image_size} pixels"


PUBLISHED = {
    "ViT-H/14": EncoderSize(1280, 1024, 224),
    "ViT-bigG/14": EncoderSize(1664, 1280, 224),
    "ViT-L/14@336": EncoderSize(1024, 768, 336),
    "ViT-L/14": EncoderSize(1024, 768, 224),
}
_ACTIVATIONS = {1280: "gelu", 1664: "gelu", 1024: "quick_gelu"}  # by hidden width; all of them have 16 heads


class ClipEncoder(Protocol):
    """A CLIP image encoder, wherever it comes from."""

    @property
    def size(self) -> EncoderSize:
        """Its widths and image size."""
        ...

    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        """Normalised pixel values (B, 3, S, S) -> features, float32."""
        ...

    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The states behind these layers, each (B, 1 + patches, hidden), float32, without the final LayerNorm.

        layers: 1 is the first layer, -1 the last. LikenessError when the encoder has fewer.
        """
        ...


class Unconditional(Enum):
    """What the encoder is shown in place of an image; the value is the name a user chooses."""

    ZERO_PIXELS = "zero pixels"  # zeros after normalisation, the way training dropped images (official)
    BLACK_IMAGE = "black image"  # as ComfyUI_IPAdapter_plus; a different vector


# ---------------------------------------------------------------------------------------------------------------------
# Sources


class TransformersClipEncoder:
    """A `transformers.CLIPVisionModelWithProjection`."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        config = model.config
        self._size = EncoderSize(config.hidden_size, config.projection_dim, config.image_size)

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
    ) -> TransformersClipEncoder:
        """Build it from a state dict and, for unpublished sizes, a `config.json`.

        Raises LikenessError when the weights are not a CLIP image encoder or not complete.
        """
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        settings = dict(config) if config is not None else config_of(weights)
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
        usable = {key: weight for key, weight in weights.items() if not key.endswith("position_ids")}
        try:
            model.load_state_dict(usable, strict=True)
        except RuntimeError as error:
            raise LikenessError(
                "the CLIP image encoder's weights are not complete or belong to another model: download it again."
            ) from error
        return cls(model)

    @property
    def size(self) -> EncoderSize:
        """Its widths and image size."""
        return self._size

    def to(self, device: torch.device | str) -> TransformersClipEncoder:
        """The same on that device."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        """Normalised pixel values (B, 3, S, S) -> features, float32, on the model's device."""
        weight = self._model.visual_projection.weight
        out = self._model(pixels.to(weight), output_hidden_states=True)
        return ClipFeatures(out.image_embeds.float(), out.hidden_states[-2].float())

    @torch.no_grad()
    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `ClipEncoder`; on the model's device."""
        found = self._model.vision_model(pixels.to(self._model.visual_projection.weight), output_hidden_states=True)
        check_depth(len(found.hidden_states) - 1, layers)
        return [found.hidden_states[layer].float() for layer in layers]


def config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The transformers configuration of a published encoder, read from its weights.

    Raises LikenessError when they are not a CLIP image encoder, or one of an unpublished size.
    """
    try:
        hidden, channels, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
        positions = len(weights["vision_model.embeddings.position_embedding.weight"])
        intermediate = len(weights["vision_model.encoder.layers.0.mlp.fc1.weight"])
        embed = len(weights["visual_projection.weight"])
    except (KeyError, ValueError) as error:
        raise LikenessError(
            "this file is not a CLIP image encoder: choose one such as CLIP-ViT-H-14-laion2B-s32B-b79K."
        ) from error
    size = EncoderSize(hidden, embed, round((positions - 1) ** 0.5) * patch)
    if size not in PUBLISHED.values():
        raise LikenessError(f"{size.name} needs its config.json: put it beside the weights.")
    prefix = "vision_model.encoder.layers."
    layers = {key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)}
    return {
        "hidden_size": hidden,
        "projection_dim": embed,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 16,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": size.image_size,
        "hidden_act": _ACTIVATIONS[hidden],
    }


def check_encoder(expected_hidden: int | None, expected_embed: int | None, actual: EncoderSize) -> None:
    """Raise LikenessError unless the encoder has the widths an adapter reads (None: it does not read that output)."""
    for name, expected, found in (("hidden", expected_hidden, actual.hidden), ("embed", expected_embed, actual.embed)):
        if expected is not None and expected != found:
            wanted = next((n for n, size in PUBLISHED.items() if getattr(size, name) == expected), "another encoder")
            raise LikenessError(
                f"this adapter needs {wanted}, got {actual.name} ({expected} ≠ {found}): "
                f"load {wanted} with Load CLIP Vision, or choose an adapter made for {actual.name}."
            )


def check_depth(depth: int, layers: Sequence[int]) -> None:
    """Raise LikenessError unless an encoder of so many layers has all of these."""
    if (deepest := max(layers)) > depth:
        raise LikenessError(
            f"this adapter reads layer {deepest} of the CLIP vision model, which has {depth}: load ViT-L/14 with Load "
            "CLIP Vision."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Images to features


def encode_images(
    encoder: ClipEncoder,
    images: Tensor,
    crop: Crop = Crop.CENTRE,
    sharpening: float = 0.0,
    mask: Tensor | None = None,
    batch_size: int = 0,
) -> ClipFeatures:
    """Features of images (B, H, W, 3) in 0..1. Options as in `image_prep.pixel_values`.

    batch_size: how many images the encoder reads at once, 0 for all.
    """
    pixels = pixel_values(images, encoder.size.image_size, crop, sharpening, mask)
    parts = [encoder.encode_pixels(part) for part in pixels.split(batch_size or len(pixels))]
    return ClipFeatures(
        torch.cat([part.image_embeds for part in parts]), torch.cat([part.penultimate for part in parts])
    )


def encode_unconditional(encoder: ClipEncoder, kind: Unconditional = Unconditional.ZERO_PIXELS) -> ClipFeatures:
    """Features of no image, one row."""
    side = encoder.size.image_size
    if kind is Unconditional.BLACK_IMAGE:
        return encode_images(encoder, torch.zeros(1, side, side, 3))
    return encoder.encode_pixels(torch.zeros(1, 3, side, side))


def encode_enhanced(
    encoder: ClipEncoder, images: Tensor, tiles: int, share: float, crop: Crop = Crop.CENTRE, sharpening: float = 0.0
) -> ClipFeatures:
    """Features with the detail of tiles x tiles close-ups (ComfyUI_IPAdapter_plus, "ClipVision Enhancer").

    One image gives two rows, share · whole and the close-ups. Several give one row each, share · whole +
    (1 - share) · close-ups. The close-ups together show the same square of an image (B, H, W, 3) as the whole.
    """
    whole = encode_images(encoder, images, crop, sharpening)
    if tiles < 2:
        return whole
    large = to_square(images, tiles * encoder.size.image_size, crop)
    close = encode_images(encoder, split_tiles(large, tiles).flatten(0, 1), sharpening=sharpening)
    embeds, penultimate = merge_tile_embeds(close.image_embeds, tiles), merge_tile_hidden(close.penultimate, tiles)
    if len(images) == 1:
        return ClipFeatures(
            torch.cat([share * whole.image_embeds, embeds]), torch.cat([share * whole.penultimate, penultimate])
        )
    return ClipFeatures(
        torch.lerp(embeds, whole.image_embeds, share), torch.lerp(penultimate, whole.penultimate, share)
    )
