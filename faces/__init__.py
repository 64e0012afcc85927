"""Faces: detection, alignment, parsing, recognition, and the `Identity` they add up to.

Importing this room loads torch and numpy only; detectors and their libraries are imported when they are opened.
"""

from __future__ import annotations

from .align import Border, arcface_crop, differentiable_crop, expand_box, ffhq_crop, head_crop, warp, warp_tensor
from .analysis import FaceAnalysis, Recogniser, Search, adopt_analysis
from .detection import Detection, Detector
from .face import Face
from .identity import Combine, Identity, build_identity, combine
from .onnx_session import Provider
from .packs import load_lbp, load_mtcnn, load_opencv, load_pack
from .photos import to_photos
from .select import Choice, choose_face, order_faces
from .similarity import cosine_similarity, mean_direction, unit, unit_distance

__all__ = [
    "Border",
    "Choice",
    "Combine",
    "Detection",
    "Detector",
    "Face",
    "FaceAnalysis",
    "Identity",
    "Provider",
    "Recogniser",
    "Search",
    "adopt_analysis",
    "arcface_crop",
    "build_identity",
    "choose_face",
    "combine",
    "cosine_similarity",
    "differentiable_crop",
    "expand_box",
    "ffhq_crop",
    "head_crop",
    "load_lbp",
    "load_mtcnn",
    "load_opencv",
    "load_pack",
    "mean_direction",
    "order_faces",
    "to_photos",
    "unit",
    "unit_distance",
    "warp",
    "warp_tensor",
]
