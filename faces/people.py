"""Which pixels of a photo are a person: Mask R-CNN (arXiv 1703.06870) of torchvision, trained on COCO.

ComfyUI brings torchvision, code and weights are under BSD-3-Clause, and people are told from one another, which a
foreground mask does not do. It is imported when a segmenter is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import LikenessError
from .weights import filled, read_network_weights

FILE = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
PERSON = 1  # among COCO's classes
LEAST_SCORE = 0.5  # of a person that counts
INSIDE = 0.5  # a mask's value from which a pixel is the person
_OF_VERSION_2 = "backbone.fpn.inner_blocks.0.1.weight"  # the first version's pyramid has no norms


@dataclass(frozen=True, eq=False)
class PeopleInPhoto:
    """The people of one photo, the most certain first.

    masks: (n, H, W) bool; boxes: (n, 4), in pixels; scores: (n,), 0..1.
    """

    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def of_face(self, box: np.ndarray | None) -> np.ndarray | None:
        """The mask of the person whose face has this box, else of the largest person; None where there is nobody."""
        if not len(self):
            return None
        if box is not None:
            x, y = ((box[:2] + box[2:]) / 2).round().astype(int)
            height, width = self.masks.shape[1:]
            hit = self.masks[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
            if hit.any():
                return self.masks[hit.argmax()]
        return self.masks[self.masks.sum((1, 2)).argmax()]


@dataclass(frozen=True)
class PersonSegmenter:
    """A network that finds people, and where it computes."""

    network: nn.Module
    name: str

    @torch.no_grad()
    def people(self, photo: np.ndarray) -> PeopleInPhoto:
        """Everybody in a photo (H, W, 3) uint8 RGB."""
        device = next(self.network.parameters()).device
        planes = torch.from_numpy(np.ascontiguousarray(photo)).to(device).permute(2, 0, 1).float() / 255
        [found] = self.network([planes])
        kept = (found["labels"] == PERSON) & (found["scores"] >= LEAST_SCORE)
        return PeopleInPhoto(
            (found["masks"][kept, 0] >= INSIDE).cpu().numpy(),
            found["boxes"][kept].cpu().numpy(),
            found["scores"][kept].cpu().numpy(),
        )


def load_segmenter(path: Path | str) -> PersonSegmenter:
    """Torchvision's Mask R-CNN (ResNet-50, version 2). Raises LikenessError for any other file, and without
    torchvision."""
    path = Path(path)
    try:
        from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
    except (ImportError, RuntimeError) as error:  # also one that was built for another torch
        raise LikenessError(
            f"Finding people in images needs torchvision, which cannot be imported ({error}): install the version "
            "that fits your torch, or connect a mask."
        ) from None
    weights = read_network_weights(path)
    if _OF_VERSION_2 not in weights:
        raise LikenessError(f"{path.name!r} is not torchvision's Mask R-CNN of version 2: choose {FILE}.")
    network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    return PersonSegmenter(filled(network, weights, "torchvision's Mask R-CNN"), path.stem)
