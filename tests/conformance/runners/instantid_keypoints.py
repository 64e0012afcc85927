"""InstantID: the keypoint picture."""

from __future__ import annotations

import sys
from typing import Any

import torch

from likeness.faces.keypoints import draw_keypoints

harness = sys.modules["likeness_conformance"]


@harness.runs("instantid", r"keypoints")
def keypoints(case: Any) -> dict[str, torch.Tensor]:
    picture = draw_keypoints([case.inputs["kps"].numpy()], case.config["width"], case.config["height"])
    return {"image": torch.from_numpy(picture)}
