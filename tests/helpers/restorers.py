"""Small restorers and networks for super-resolution with random weights, under the official keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from likeness.restoration.codeformer import (
    AttentionBlock,
    Blocks,
    CodeFormerBlock,
    Codes,
    Double,
    Fusion,
    Halve,
    TransformerLayer,
)

WIDTH = 32


class _CodeFormer(nn.Module):
    """The released layout: faces of 64 pixels, 16 x 16 codes."""

    def __init__(self) -> None:
        super().__init__()
        conv, width = nn.Conv2d, WIDTH

        def res() -> CodeFormerBlock:
            return CodeFormerBlock(width, width)

        end = [nn.GroupNorm(32, width), conv(width, width, 3, padding=1)]
        self.encoder = Blocks(
            [conv(3, width, 3, padding=1), res(), Halve(width), res(), Halve(width), res(), AttentionBlock(width), *end]
        )
        self.generator = Blocks(
            [
                *(conv(width, width, 3, padding=1), res(), AttentionBlock(width)),
                *(
                    Double(width),
                    res(),
                    res(),
                    Double(width),
                    res(),
                    nn.GroupNorm(32, width),
                    conv(width, 3, 3, padding=1),
                ),
            ]
        )
        self.quantize = Codes(16, width)
        self.position_emb = nn.Parameter(torch.zeros(256, 64))
        self.feat_emb = nn.Linear(width, 64)
        self.ft_layers = nn.ModuleList(TransformerLayer(64, 128, 8) for _ in range(2))
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 16, bias=False))
        self.fuse_convs_dict = nn.ModuleDict({size: Fusion(width) for size in ("32", "64")})


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def codeformer(seed: int = 0) -> dict[str, Tensor]:
    """Faces of 64 pixels."""
    torch.manual_seed(seed)
    return _weights(_CodeFormer())


def gfpgan(seed: int = 0, side: int = 64) -> dict[str, Tensor]:
    """The clean architecture, a sixteenth as wide."""
    from spandrel.architectures import GFPGAN

    torch.manual_seed(seed)
    build = GFPGAN.GFPGAN
    network = build(out_size=side, num_style_feat=16, channel_multiplier=1, narrow=1 / 16, num_mlp=2)  # type: ignore[arg-type]
    return _weights(network)


def restoreformer(seed: int = 0) -> dict[str, Tensor]:
    """Of any size that is a multiple of 32."""
    from spandrel.architectures import RestoreFormer

    torch.manual_seed(seed)
    sizes = {"n_embed": 16, "embed_dim": 32, "ch": 32, "ch_mult": (1,) * 6, "num_res_blocks": 1, "z_channels": 32}
    return _weights(RestoreFormer.RestoreFormer(**sizes, attn_resolutions=(16,)))


def esrgan(seed: int = 0, scale: int = 4) -> dict[str, Tensor]:
    """Real-ESRGAN's network with one block."""
    from spandrel.architectures import ESRGAN

    torch.manual_seed(seed)
    channels = 3 * (4 // scale) ** 2  # smaller factors fold pixels into channels first
    network = ESRGAN.ESRGAN(in_nc=channels, num_filters=8, num_blocks=1, scale=4)
    return _weights(network)
