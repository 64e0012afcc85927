"""FastComposer for SD1.5 (arXiv 2305.10431; weights of mit-han-lab/fastcomposer): several people in one prompt.

Every subject is one image. The state c of its noun, as the text encoder made it, is fused with the image's embedding e:

    e   = W · CLIP(subject)                                   pooled, not normalised
    h   = mlp1([c; e]) + c;   h = mlp2(h) + h;   fuse = LayerNorm(h)
    c' = c + w · (fuse - c)                                   w: how much the subject counts, 1 is official

The first (1 - alpha) · steps + 1 steps read the prompt without its subjects, the rest with them. The UNet was trained
as well, all of it. A file holds the whole training model:

    image_encoder.vision_model.*, image_encoder.visual_projection.weight
    postfuse_module.{mlp1,mlp2}.{layernorm,fc1,fc2}.*, postfuse_module.layer_norm.*
    unet.*                                                    under diffusers' names
    text_encoder.*, vae.*                                     SD1.5's own; not read
"""

from __future__ import annotations

from .adapter import SYSTEM, FastComposer, FastComposerOptions, StepCount
from .networks import ImageEncoder, SubjectEncoder, fuse_marked
from .prompt import LongPrompts, SubjectWords
from .references import Background

__all__ = [
    "SYSTEM",
    "Background",
    "FastComposer",
    "FastComposerOptions",
    "ImageEncoder",
    "LongPrompts",
    "StepCount",
    "SubjectEncoder",
    "SubjectWords",
    "fuse_marked",
]
