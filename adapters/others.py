"""Weight files that are known but cannot be loaded as identity adapters: what each is, and where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import LikenessError
from .eva_clip import is_eva
from .system import WeightFile

_LORA = re.compile(r"^lora_|\.lora_(down|up|A|B)\.|\.lora\.(down|up)\.")  # of kohya, peft and diffusers


def _keys(*prefixes: str) -> Callable[[WeightFile], bool]:
    return lambda file: any(file.has(prefix) for prefix in prefixes)


is_part_of_adapter = _keys("image_proj.", "ip_adapter.", "image_proj_model.", "adapter_modules.")


def _is_lora(file: WeightFile) -> bool:
    return any(_LORA.search(key) for key in file.weights)


# What else people put into the folder. The first that fits, so the surest sign goes first.
_STRANGERS = (
    (
        _is_lora,
        "is a LoRA, not an identity adapter: choose the adapter itself (FaceID files bring their LoRA), or load this "
        "file with Load LoRA",
    ),
    (
        is_part_of_adapter,
        "is not a complete IP-Adapter file (half of it is missing): download it again, or choose another",
    ),
    (
        lambda file: is_eva(file.weights),
        "is PuLID's image encoder EVA02-CLIP, not an adapter: leave it in models/clip_vision, where PuLID finds it, "
        "and choose pulid_v1.bin or another adapter",
    ),
    (_keys("vision_model.", "visual."), "is a CLIP vision model: load it with Load CLIP Vision"),
    (_keys("model.diffusion_model.", "first_stage_model."), "is a checkpoint: load it with Load Checkpoint"),
    (
        _keys("control_model.", "controlnet_cond_embedding.", "zero_convs."),
        "is a ControlNet, not an identity adapter: load it with Load ControlNet Model; InstantID's goes to Identity "
        "ControlNet",
    ),
    (_keys("down_blocks.", "input_blocks.", "double_blocks."), "is a denoiser: load it with Load Diffusion Model"),
)


def explain(file: WeightFile) -> LikenessError:
    """What to say of a file that is of no adapter kind."""
    unknown = f"{file.name!r} is not an identity adapter this pack knows: choose one that Load Identity Adapter lists."
    return stranger(file) or LikenessError(unknown)


def stranger(file: WeightFile) -> LikenessError | None:
    """What to say of a file that is known and no adapter; None of any other."""
    what = next((what for fits, what in _STRANGERS if fits(file)), None)
    return None if what is None else LikenessError(f"{file.name!r} {what}.")
