"""A file of torchvision's Mask R-CNN in which every region that is looked at is a person that fills it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write(path: Path) -> Path:
    """Write it with random weights in half precision (93 MB)."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    classes, boxes, fill = (
        network.roi_heads.box_predictor.cls_score,
        network.roi_heads.box_predictor.bbox_pred,
        network.roi_heads.mask_predictor.mask_fcn_logits,
    )
    with torch.no_grad():
        for layer in (classes, boxes, fill):
            layer.weight.zero_()
            layer.bias.zero_()
        classes.bias[1] = 10.0
        fill.bias[:] = 5.0
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}, path
    )
    return path
