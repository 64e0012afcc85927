"""Between images and latents, by linear maps in closed form: no training, and the same numbers in every host.

A user's image of 128 pixels is halved, and each 4x4 patch of the half becomes 16 numbers: a latent is 8 times
smaller than its image, as hosts expect of every VAE. The way back is the linear map that errs least: each 8x8 patch
from the latents around it.

`python -m likeness.miniature.models.latents` fits the maps to drawn images again and writes their file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import LikenessError
from ..drawing.people import split_people
from ..drawing.renderer import render_batches
from ..drawing.shots import draw_shots

FILE = Path(__file__).parents[1] / "weights" / "latents.safetensors"
CHANNELS = 16
FACTOR = 8
_PATCH = FACTOR // 2  # of the halved image
_FIT_PICTURES = 1200
_RIDGE = 1e-6


class PatchCodec(nn.Module):
    """The encoder: a 4x4 convolution of stride 4 on the halved image. The decoder: a 3x3 one to 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, CHANNELS, _PATCH, stride=_PATCH)
        self.decoder = nn.Conv2d(CHANNELS, 3 * FACTOR**2, 3, padding=1, padding_mode="replicate")
        self.requires_grad_(False)

    def encode(self, pictures: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1 -> latents (B, 16, H/8, W/8) of unit variance.

        LikenessError unless 8 divides both sides.
        """
        height, width = pictures.shape[-2:]
        if height % FACTOR or width % FACTOR:
            raise LikenessError(
                f"An image of {width}x{height} pixels has no latent; choose a width and height that {FACTOR} divides."
            )
        return self.encode_halved(F.avg_pool2d(pictures, 2))

    def encode_halved(self, pictures: Tensor) -> Tensor:
        """Images (B, 3, h, w) in 0..1 of half the size, as networks are trained on -> latents (B, 16, h/4, w/4)."""
        return self.encoder(2 * pictures - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, h, w) -> images (B, 3, 8h, 8w) in 0..1."""
        return ((F.pixel_shuffle(self.decoder(latents), FACTOR) + 1) / 2).clamp(0, 1)


def fit_encoder(codec: PatchCodec, pictures: Tensor) -> None:
    """Principal components of the halved pictures' patches, half whitened, of unit variance over all channels together.

    Component i is divided by the square root of its standard deviation: undivided, the first would be four times too
    strong for the last time step of diffusion; divided by all of it, invisible detail would cost as much as a face.
    """
    patches = _patches(2 * F.avg_pool2d(pictures, 2) - 1, _PATCH)
    mean = patches.mean(0)
    centred = patches - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations, axes = variances.flip(0)[:CHANNELS].sqrt(), axes.flip(1)[:, :CHANNELS]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
    gain = (CHANNELS / deviations.sum()).sqrt()
    weight = gain * (axes / deviations.sqrt()).T
    codec.encoder.weight.copy_(weight.view(CHANNELS, 3, _PATCH, _PATCH))
    codec.encoder.bias.copy_(-weight @ mean)  # type: ignore[union-attr]


def fit_decoder(codec: PatchCodec, pictures: Tensor) -> None:
    """Least squares from 3x3 latents to the 8x8 pixels under the middle one (normal equations in float64)."""
    left, right = 0.0, 0.0
    for portion in pictures.split(64):
        around = F.unfold(F.pad(codec.encode(portion), (1, 1, 1, 1), mode="replicate"), 3)
        inputs = F.pad(_rows(around), (0, 1), value=1.0)
        left = left + inputs.T @ inputs
        right = right + inputs.T @ _patches(2 * portion - 1, FACTOR)
    assert isinstance(left, Tensor) and isinstance(right, Tensor)
    ridge = _RIDGE * left.diagonal().mean() * torch.eye(len(left), dtype=left.dtype)
    solution = torch.linalg.solve(left + ridge, right).T
    codec.decoder.weight.copy_(solution[:, :-1].reshape(3 * FACTOR**2, CHANNELS, 3, 3))
    codec.decoder.bias.copy_(solution[:, -1])  # type: ignore[union-attr]


def _rows(columns: Tensor) -> Tensor:
    """What `unfold` gives, (B, D, L), as float64 rows (B * L, D)."""
    return columns.transpose(1, 2).reshape(-1, columns.shape[1]).double()


def _patches(pictures: Tensor, side: int) -> Tensor:
    """Every patch of the images as a row of float64, in the order colour, row, column."""
    return _rows(F.unfold(pictures, side, stride=side))


def fit_codec(count: int = _FIT_PICTURES, size: int = 128) -> PatchCodec:
    """The codec of `count` drawn images of base people, which takes seconds per hundred."""
    batches = render_batches(split_people("base", count), draw_shots(range(count)), size, batch=32)
    pictures = torch.cat([batch.rgb for batch in batches]).permute(0, 3, 1, 2)
    codec = PatchCodec()
    fit_encoder(codec, pictures)
    fit_decoder(codec, pictures)
    return codec


def load_codec(path: Path = FILE) -> PatchCodec:
    """The shipped codec. LikenessError for a file that is missing or not one."""
    from safetensors.torch import load_file

    codec = PatchCodec()
    try:
        codec.load_state_dict(load_file(path))
    except Exception as error:
        raise LikenessError(
            f"'{path}' is not a codec of the miniature world; "
            "run `python -m likeness.miniature.models.latents` to write it again."
        ) from error
    return codec.eval()


def save_codec(codec: PatchCodec, path: Path = FILE) -> None:
    """Write the codec's numbers."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in codec.state_dict().items()}, path)


if __name__ == "__main__":
    save_codec(fit_codec())
    print(f"written to {FILE}")
