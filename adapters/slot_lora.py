"""A LoRA in IP-Adapter's numbering, as FaceID and StoryMaker files bring one, as a change of the denoiser's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..weights.lora_files import read_slots
from .effects import WeightDelta


def slot_delta(name: str, weights: Mapping[str, Tensor], attention: Mapping[int, str], strength: float) -> WeightDelta:
    """The LoRA of a file as an effect.

    weights: `<slot>.to_{q,k,v,out}_lora.{down,up}.weight`, without alpha. attention: slot -> diffusers' path of the
    attention layer, even slots self-attention, odd ones cross-attention.
    """
    pairs = {f"{attention[slot]}.{layer}": pair for (slot, layer), pair in read_slots(weights).items()}
    return WeightDelta(name, digest(weights), pairs, strength)


def digest(weights: Mapping[str, Tensor]) -> str:
    """Tells a LoRA from others, whatever the files are called."""
    first = weights[min(weights)].detach().cpu().contiguous()
    return hashlib.sha256(first.view(torch.uint8).numpy().tobytes()).hexdigest()
