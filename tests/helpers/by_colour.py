"""A face analysis that knows people by the colour of their image, and other things the tests of this folder share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from likeness.faces import FaceAnalysis
from likeness.faces.detection import Detection

BUILT_IN = [
    "OpenCV (YuNet + SFace)",
    "facexlib (RetinaFace + IR-SE50)",
    "MTCNN (no recogniser)",
    "LBP cascade (boxes only)",
    "miniature",
    "miniature-judge",
]
FREE = ["works now (the best that is here)", "dlib (YuNet + dlib ResNet)"]


@dataclass(frozen=True)
class ByColour:
    """Finds one face in every image that is not black; its embedding follows the image's main colour."""

    name: str = "by colour"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (64,)

    def detect(self, image_bgr, size=None):
        height, width = image_bgr.shape[:2]
        if image_bgr[height // 2, width // 2].max() == 0:
            return []
        five = np.array([(20, 24), (40, 24), (30, 34), (22, 44), (38, 44)], np.float32)
        return [Detection(np.array([10, 8, 50, 56], np.float32), 0.9, five)]

    def embed(self, image_rgb, keypoints):
        return image_rgb[0, 0].astype(np.float32)


BY_COLOUR = FaceAnalysis("by colour", ByColour(), ByColour())
RED, DARK_RED, BLUE, BLACK = (255, 0, 0), (120, 10, 0), (0, 0, 255), (0, 0, 0)


def coloured(*middles):
    """An image of each colour."""
    return torch.tensor(middles).float().reshape(-1, 1, 1, 3).expand(-1, 64, 60, 3) / 255


def found(run, *middles):
    """What Find Faces makes of images of these colours."""
    return run("FindFaces", face_analysis=BY_COLOUR, image=coloured(*middles), if_none="use whole picture")[0]


def options(node, name):
    """What a combo of a node offers now."""
    return next(widget.options for widget in node.define_schema().inputs if widget.id == name)
