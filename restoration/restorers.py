"""Face restorers: CodeFormer, GFPGAN, RestoreFormer, each called as its authors call it.

spandrel's own call normalises neither for GFPGAN nor for CodeFormer, and draws fresh noise; so files are read by
spandrel at most, and the networks are called here: RGB -1..1 in and out, one square size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LikenessError, logger
from ..faces.weights import Weights, block_count, filled
from ..weights.files import read_content
from .codeformer import codeformer
from .spandrel_files import described, spandrel

log = logger(__name__)
WRAPPERS = ("params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net")
PREFIXES = ("module.", "netG.")


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of a restorer. Those that know neither of them are not asked.

    fidelity: CodeFormer's w, 0 = most beautiful, 1 = closest to the input. adain: CodeFormer's colours are those of the
    image, as in the official restoration, and not the codebook's.
    """

    fidelity: float = 0.5
    adain: bool = True


@dataclass(frozen=True)
class Architecture:
    """An architecture: what its files' authors allow, and how it is called."""

    title: str
    licence: str
    commercial: bool | None  # None: unclear, or only in parts
    call: Callable[[Any, Tensor, Wishes], Tensor]  # network, faces (B, 3, S, S) RGB -1..1 -> the same
    knows_fidelity: bool = False


CODEFORMER = Architecture(
    "CodeFormer",
    "NTU S-Lab License 1.0: non-commercial use only",
    False,
    lambda network, x, wishes: network(x, wishes.fidelity, wishes.adain).image,
    knows_fidelity=True,
)
# The noise that is stored in the file: with the official default two calls differ.
GFPGAN = Architecture(
    "GFPGAN",
    "Apache-2.0, with parts of StyleGAN2 (NVIDIA: non-commercial) and DFDNet (CC BY-NC-SA)",
    None,
    lambda network, x, wishes: network(x, return_rgb=False, randomize_noise=False)[0],
)
RESTOREFORMER = Architecture("RestoreFormer", "Apache-2.0", True, lambda network, x, wishes: network(x)[0])


@dataclass(frozen=True, eq=False)
class FaceRestorer:
    """A loaded restorer."""

    network: nn.Module
    kind: Architecture
    name: str  # of its file
    side: int = 512  # of the faces it takes, in pixels

    @torch.no_grad()
    def restore(self, faces: Tensor, wishes: Wishes | None = None) -> Tensor:
        """Aligned faces (B, 3, side, side), RGB 0..1, to restored ones: float32 0..1, on the faces' device.

        Computes where the network lies, in its precision, all of the batch at once. The same faces give the same
        result.
        """
        weight = next(self.network.parameters())
        x = (faces.to(weight.device, torch.float32) * 2 - 1).to(weight.dtype)
        restored = self.kind.call(self.network, x, bounded(wishes or Wishes())).float()
        return ((restored.clamp(-1, 1) + 1) / 2).to(faces.device)


def bounded(wishes: Wishes) -> Wishes:
    """The wishes with a fidelity in 0..1, and a warning where it was not."""
    if 0 <= wishes.fidelity <= 1:
        return wishes
    fidelity = min(max(wishes.fidelity, 0.0), 1.0)
    log.warning("[likeness] fidelity is %s and %s was used: it must be from 0 to 1.", wishes.fidelity, fidelity)
    return Wishes(fidelity, wishes.adain)


def precision_of(wanted: torch.dtype, name: str) -> tuple[torch.dtype, str]:
    """The precision a face restorer can compute in, and a sentence where it is not the one that was wanted."""
    if wanted is torch.float16:
        return torch.float32, f"{name} overflows in float16: it computes in float32; bfloat16 is possible."
    return wanted, ""


# --- files


def load_restorer(path: Path | str) -> FaceRestorer:
    """The restorer in a file, float32, on the CPU.

    Raises LikenessError with a sentence for a file that is not a restorer, naming what it is where that is known.
    """
    path = Path(path)
    return restorer_of(unwrapped(read_content(path)[0], path.name), path.name)


def unwrapped(content: Any, file: str) -> Weights:
    """The weights in what a file holds: averaged ones before the others, prefixes of wrappers taken off."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    pairs = content.items() if isinstance(content, dict) else ()
    weights = {str(key): value for key, value in pairs if torch.is_tensor(value)}
    for prefix in PREFIXES:
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    if not weights:
        raise LikenessError(f"The file '{file}' holds no weights: download it again, or choose another.")
    return weights


def restorer_of(weights: Weights, file: str) -> FaceRestorer:
    """The restorer that these weights are of; `file` names them in messages."""
    if is_codeformer(weights):
        network = codeformer(weights)
        return FaceRestorer(network, CODEFORMER, file, network.side)
    if reason := known_and_refused(weights):
        raise LikenessError(f"The file '{file}' is {reason}.")
    if is_gfpgan(weights):
        network, side = gfpgan(weights, file)
        return FaceRestorer(network, GFPGAN, file, side)
    return adopted_restorer(described(weights, file), file)


def adopted_restorer(descriptor: Any, file: str = "") -> FaceRestorer:
    """A restorer from spandrel's description, as ComfyUI's and other packs' loaders give it."""
    architecture = getattr(getattr(descriptor, "architecture", None), "id", None)
    network = getattr(descriptor, "model", None)
    if not isinstance(network, nn.Module) or architecture is None:
        raise LikenessError(
            f"The restorer input holds a {type(descriptor).__name__}: connect Load Face Restorer, or a loader of "
            "another pack for CodeFormer, GFPGAN or RestoreFormer."
        )
    file = file or str(architecture)
    if architecture in (RESTOREFORMER.title, GFPGAN.title):
        kind = RESTOREFORMER if architecture == RESTOREFORMER.title else GFPGAN
        return FaceRestorer(network.float().eval().requires_grad_(False), kind, file)
    if architecture == CODEFORMER.title:  # its own class knows neither other sizes nor a switch for AdaIN
        return restorer_of(network.state_dict(), file)
    raise LikenessError(
        f"The network {file!r} is {architecture}, which restores no faces: choose CodeFormer, GFPGAN or RestoreFormer; "
        "networks for super-resolution go into Load Upscale Model and Upscale Portrait."
    )


def is_codeformer(weights: Weights) -> bool:
    """Whether these are a whole CodeFormer's."""
    return {"position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight"} <= weights.keys()


def is_gfpgan(weights: Weights) -> bool:
    """Whether these are GFPGAN's of the clean architecture (v1.2, v1.3, v1.4)."""
    return {"conv_body_first.weight", "toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"} <= weights.keys()


_GET_GFPGAN = "GFPGANv1.3.pth or GFPGANv1.4.pth, which `likeness models get gfpgan-v1.4` fetches"
_REFUSED: list[tuple[set[str], str]] = [  # keys that only such a file has -> what it is, what to take in its place
    (
        {"conv_body_first.0.weight", "stylegan_decoder.style_mlp.1.weight"},
        f"GFPGAN of the original or the bilinear architecture, which needs compiled CUDA code: choose {_GET_GFPGAN}",
    ),
    ({"conv0.weight", "conv1.weight_orig"}, "the discriminator that trained Real-ESRGAN: choose the generator's file"),
    ({"main.0.weight", "main.3.running_mean"}, "the discriminator that trained CodeFormer: choose codeformer.pth"),
    ({"conv_body.0.0.weight", "final_linear.0.weight"}, f"the discriminator that trained GFPGAN: choose {_GET_GFPGAN}"),
    ({"conv1.0.weight", "final_conv.0.weight"}, f"a discriminator of eyes or mouth of GFPGAN: choose {_GET_GFPGAN}"),
    (
        {"encoder.blocks.0.weight", "generator.blocks.0.weight", "quantize.embedding.weight"},
        "CodeFormer's codebook without its transformer: choose codeformer.pth",
    ),
]


_OF_CHECKPOINTS = ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "joint_blocks.", "lora_unet_")


def known_and_refused(weights: Weights) -> str:
    """What a file is that many have and that cannot be used, and what to take in its place; empty for others."""
    if any(key.startswith(_OF_CHECKPOINTS) for key in weights):
        return f"a model that generates images and does not restore any: choose {_GET_GFPGAN}"
    return next((what for keys, what in _REFUSED if keys <= weights.keys()), "")


GFPGAN_WIDTHS = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}  # of the finest level, times multiplier and narrowness


def gfpgan(weights: Weights, file: str = "the file") -> tuple[nn.Module, int]:
    """GFPGAN of the clean architecture of any size and width, and the side of its faces.

    spandrel's loader knows the released sizes only, its network all of them.
    """
    spandrel()
    from spandrel.architectures import GFPGAN as architecture

    build: Any = architecture.GFPGAN

    try:
        side = 2 ** (block_count(weights, "toRGB.") + 2)
        narrow = weights["stylegan_decoder.constant_input.weight"].shape[1] / 512
        widest = weights["conv_body_first.weight"].shape[0]
        styles = weights["stylegan_decoder.style_mlp.1.weight"].shape[0]
        multiplier = widest / (GFPGAN_WIDTHS[side] * narrow / 2) if side in GFPGAN_WIDTHS else 1
        network = build(
            out_size=side,
            num_style_feat=styles,
            channel_multiplier=multiplier,
            narrow=narrow,
            num_mlp=sum(key.startswith("stylegan_decoder.style_mlp.") and key.endswith("weight") for key in weights),
            input_is_latent=True,
            different_w=weights["final_linear.weight"].shape[0] == (2 * int(math.log2(side)) - 2) * styles,
            sft_half=weights["condition_scale.0.2.weight"].shape[0] == weights["toRGB.0.weight"].shape[1],
        )
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise LikenessError(
            f"The weights of '{file}' do not fit GFPGAN, which they look like ({error}): choose another file."
        ) from error
    return filled(network, weights, "a GFPGAN"), side
