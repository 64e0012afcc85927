"""FastComposer's networks: the CLIP tower that looks at a subject, and the MLP that fuses it with its noun."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip_tower import HEAD_WIDTH, ClipTower, TowerSizes
from ..image_prep import normalise
from ..networks import FuseModule

TOWER = "vision_model."


class ImageEncoder(nn.Module):
    """A CLIP vision tower and its projection. Both are those of training's last step, not OpenAI's."""

    def __init__(self, weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> None:
        """weights: keys without `image_encoder.`, which give all sizes but the heads'. KeyError or ValueError when they
        are no such encoder."""
        super().__init__()
        tower = {key.removeprefix(TOWER): value for key, value in weights.items() if key.startswith(TOWER)}
        self.vision_model = ClipTower(TowerSizes.of(tower, head_width))
        self.visual_projection = nn.Linear(*reversed(weights["visual_projection.weight"].shape), bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Subjects of a batch (batch, n, 3, H, W), 0..1, any size -> (batch, n, 1, dim), of any length."""
        size = self.vision_model.image_size
        pixels = images.flatten(0, 1)
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
        states = self.vision_model(normalise(pixels.movedim(1, -1)))
        embeds = self.visual_projection(self.vision_model.pooled(states))
        return embeds.unflatten(0, images.shape[:2]).unsqueeze(2)


class SubjectEncoder(nn.Module):
    """`image_encoder` and `postfuse_module` of a file, under its keys."""

    def __init__(self, weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> None:
        """Raises KeyError, ValueError or RuntimeError when the weights are no complete encoder."""
        super().__init__()
        images = {k.removeprefix("image_encoder."): v for k, v in weights.items() if k.startswith("image_encoder.")}
        with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
            self.image_encoder = ImageEncoder(images, head_width)
            self.postfuse_module = FuseModule(weights["postfuse_module.layer_norm.weight"].shape[0])
        self.load_state_dict(weights, strict=True, assign=True)


def fuse_marked(fuse: FuseModule, states: Tensor, marks: Tensor, subjects: Tensor, counts: Tensor) -> Tensor:
    """The k-th marked word of every text is fused with its k-th subject; the given states are left.

    states: (batch, tokens, dim); marks: (batch, tokens), true at the nouns; subjects: (batch, most, 1, dim), of which a
    text has the first `counts`, (batch,). A text without subjects stays as it is. With gradient.
    """
    marks = marks.bool()
    marks = marks & (marks.cumsum(1) <= counts[:, None])
    there = torch.arange(subjects.shape[1], device=counts.device) < counts[:, None]
    fused = fuse(states[marks], subjects.flatten(2).to(states)[there])
    changed = states.clone()
    changed[marks] = fused.to(states)
    return changed
