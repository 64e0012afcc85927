"""The networks of the miniature world: the families of the full-size ones, small enough for a laptop's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...adapters import build
from ...adapters.ip_adapter.evidence import Evidence
from ...adapters.types import IdentityTokens
from ...faces.iresnet import IResNet
from ...training.base.noise import NoiseSchedule, Prediction
from ...training.ip_adapter import fresh_faceid
from ..drawing.people import KINDS, TRAITS
from ..drawing.shots import Clothing, Colour, Expression, Scene, Style

Module = TypeVar("Module", bound=nn.Module)

TOKENIZER = Path(__file__).parents[1] / "tokenizer"
TEXT_WIDTH = 128
_WORD_SIZE = 0.1
LATENT_CHANNELS, LATENT_SIZE = 16, 16
EMBEDDING, JUDGE_EMBEDDING = 512, 256

# Cross-attention only where the image is 8x8 and smaller: at 16x16 it would cost a third of the step.
UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "block_out_channels": (64, 128, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,  # heads, not their width: diffusers keeps the misnomer for old checkpoints
}
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_WIDTH,
}


def build_unet() -> Any:
    """The denoiser: a diffusers `UNet2DConditionModel` of SD1.5's family, random weights."""
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**UNET)
    # On a CPU, with heads this small, two matrix products are faster than the fused kernels.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_tokenizer() -> Any:
    """The world's `CLIPTokenizer`, from the files beside this one."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER)


def build_text_encoder() -> Any:
    """The `CLIPTextModel` of the world's vocabulary, random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **TEXT
    )
    return CLIPTextModel(config)


def noise_schedule() -> NoiseSchedule:
    """Stable Diffusion's noise; the network predicts the velocity, because what a prompt decides is decided in the
    noisiest steps, and there a predicted ε carries almost nothing."""
    return NoiseSchedule.scaled_linear(Prediction.VELOCITY)


# Sides of the aligned crops that the recognisers read.
RECOGNISER_CROP, JUDGE_CROP = 56, 48


def build_recogniser() -> IResNet:
    """The recogniser that conditions: crops (B, 3, 56, 56), RGB -1..1, to raw embeddings (B, 512)."""
    return IResNet(stem=12, widths=(24, 48, 96, 128), blocks=(1, 2, 2, 1), cells=16, dim=EMBEDDING)


def build_judge() -> IResNet:
    """The recogniser that judges, another net on other people: crops (B, 3, 48, 48) to raw embeddings (B, 256)."""
    return IResNet(stem=14, widths=(28, 56, 112, 128), blocks=(1, 1, 1, 1), cells=9, dim=JUDGE_EMBEDDING)


# What the observer tells of an image, and how many answers each question has. The last answer of "hat" is: none.
QUESTIONS: dict[str, int] = {
    "style": len(Style),
    "scene": len(Scene),
    "expression": len(Expression),
    "clothing": len(Clothing),
    "clothing_colour": len(Colour),
    "glasses": 2,
    "beard": 2,
    "hat": len(Colour) + 1,
}


class Observer(nn.Module):
    """Looks at a whole image: is there a face of this world, where are its five points and its box, what is shown.

    Images (B, 3, 64, 64), RGB 0..1. Convolutions halve the side until 4x4; every question is one linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 128)
        strides = (2, 2, 2, 1, 2)
        layers: list[nn.Module] = []
        for width_in, width, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(128 * 16, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.answers = nn.Linear(128, sum(QUESTIONS.values()))
        self.points = nn.Linear(128, 14)  # five keypoints, then two corners of the box
        self.presence = nn.Linear(128, 1)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 128)."""
        return self.fc(self.trunk(2 * pictures - 1).flatten(1))

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Logits of every question, points (B, 7, 2) as parts of the side 0..1, and the logit of a face (B,)."""
        features = self.features(pictures)
        answers = dict(zip(QUESTIONS, self.answers(features).split(list(QUESTIONS.values()), dim=1), strict=True))
        return answers, self.points(features).view(-1, 7, 2), self.presence(features)[:, 0]


class Scaffold(nn.Module):
    """Only for training the base: tells the denoiser who is drawn, in two ways, so that it learns to draw anybody.

    A caption does not say who, and a denoiser that is never told averages all people. So in half of the images the
    person's true traits come along, as two words of the prompt or, in the next step, through an image adapter of their
    own. It is thrown away afterwards: what stays in the base is that it can draw whom it is told, as a model that has
    read billions of captions can. (As more tokens behind the prompt's 77, they were ignored for 1200 steps.)
    """

    WORDS = 2

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        traits = len(TRAITS) + sum(len(kind) for kind, _ in KINDS.values())
        self.trunk = nn.Sequential(nn.Linear(traits, 256), nn.GELU(), nn.Linear(256, self.WORDS * TEXT_WIDTH))
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        weights = fresh_faceid(unet, traits, hidden=256)
        adapter = build({key: value for key, value in weights.items() if "_lora." not in key}, "scaffold")
        self.adapter = adapter.float().requires_grad_(True)

    def as_words(self, traits: Tensor) -> Tensor:
        """(B, 2, 128), of the size that word embeddings grow to."""
        return _WORD_SIZE * self.norm(self.trunk(traits).view(-1, self.WORDS, TEXT_WIDTH))

    def as_tokens(self, traits: Tensor) -> IdentityTokens:
        """What the adapter injects."""
        return self.adapter.tokens(Evidence(id_embeds=traits))


def halve(pictures: Tensor, side: int = 64) -> Tensor:
    """Images (B, 3, H, W) at the side the networks read, by area."""
    return pictures if pictures.shape[-1] == side else F.interpolate(pictures, size=(side, side), mode="area")


def frozen(module: Module) -> Module:
    """For inference only."""
    return module.eval().requires_grad_(False)
