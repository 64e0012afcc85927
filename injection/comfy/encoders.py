"""ComfyUI's encoders behind the protocols that adapters read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...adapters.clip_vision import ClipFeatures, EncoderSize, check_depth
from ...adapters.effects import PromptStates
from ...adapters.text_encoder import Token, Tokens, Tower, Windows
from ...errors import LikenessError
from ...weights.families import TEXT_ENCODERS


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
        """Its widths and image size."""
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

    @torch.no_grad()
    def hidden_states(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `ClipEncoder`; on ComfyUI's intermediate device."""
        import comfy.model_management as mm

        model = self._clip_vision.model
        check_depth(len(model.vision_model.encoder.layers), layers)
        mm.load_model_gpu(self._clip_vision.patcher)
        pixels = pixels.to(self._clip_vision.load_device, torch.float32)
        wanted = "all" if any(layer > 0 for layer in layers) else None
        last, every, *_ = model(pixel_values=pixels, intermediate_output=wanted)
        device = mm.intermediate_device()
        return [(last if layer == -1 else every[:, layer - (layer > 0)]).to(device, torch.float32) for layer in layers]


class ComfyTextEncoder:
    """ComfyUI's CLIP, with the LoRAs, the skipped layers and the embeddings that it was given."""

    def __init__(self, clip: Any) -> None:
        """Raises LikenessError when the socket holds text encoders of another kind, such as T5."""
        model, tokenizer = getattr(clip, "cond_stage_model", None), getattr(clip, "tokenizer", None)
        names = [encoder.name for encoder in TEXT_ENCODERS if hasattr(model, encoder.name)]
        others = [name for name, _ in model.named_children() if name not in names] if model is not None else []
        if not names or others or not all(hasattr(tokenizer, name) for name in names):
            raise LikenessError(
                f"The CLIP is a {type(model).__name__}, which this pack cannot read word by word: connect the CLIP of "
                "an SD1.5 or SDXL checkpoint."
            )
        self._clip = clip
        self._towers = tuple(_tower(name, getattr(model, name), getattr(tokenizer, name)) for name in names)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """See `TextEncoder`."""
        return self._towers

    def tokenize(self, text: str) -> Tokens:
        """See `TextEncoder`; prompt syntax and embeddings are understood."""
        found = self._clip.tokenize(text, return_word_ids=True)
        return {tower.name: self._tokens(tower, found[_key(tower)]) for tower in self._towers}

    def _tokens(self, tower: Tower, windows: Any) -> list[Token]:
        pieces = getattr(self._clip.tokenizer, tower.name).inv_vocab
        return [
            Token(i, pieces[i] if isinstance(i, int) else "", weight, group)
            for window in windows
            for i, weight, group in window
            if group != 0  # that of start, end and padding
        ]

    def encode(self, windows: Windows, layer: int | None = None) -> PromptStates:
        """See `TextEncoder`."""
        clip = self._clip
        if layer is not None:
            clip = clip.clone()
            clip.clip_layer(layer)
        pairs = {
            _key(tower): [[(token.id, token.weight) for token in window] for window in windows[tower.name]]
            for tower in self._towers
        }
        states, pooled = clip.encode_from_tokens(pairs, return_pooled=True)
        return PromptStates(states, pooled)

    @property
    def skipped_layers(self) -> int:
        """How many of the last layers CLIP Set Last Layer leaves out, where the family reads the last one."""
        layer = getattr(self._clip, "layer_idx", None)
        return max(-1 - layer, 0) if isinstance(layer, int) and len(self._towers) == 1 else 0

    def conditioning(self, text: PromptStates) -> list[tuple[Tensor, dict[str, Any]]]:
        """The text as ComfyUI's CONDITIONING, with what the CLIP wants to ride on it."""
        return [(text.states, self._clip.add_hooks_to_dict({"pooled_output": text.pooled}))]


def _key(tower: Tower) -> str:
    """What the host calls a tower among tokens."""
    return tower.name.removeprefix("clip_")


def _tower(name: str, model: Any, tokenizer: Any) -> Tower:
    width = model.transformer.get_input_embeddings().weight.shape[1]
    return Tower(
        name, width, tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token, length=tokenizer.max_length
    )
