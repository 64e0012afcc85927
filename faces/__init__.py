"""Faces: detection, alignment, parsing, recognition, and the `Identity` they add up to.

Importing this room loads torch and numpy only; detectors and their libraries are imported when they are opened.
"""

from __future__ import annotations

from .align import Border, arcface_crop, differentiable_crop, expand_box, ffhq_crop, head_crop, warp, warp_tensor
from .analysis import FaceAnalysis, Recogniser, Search, adopt_analysis
from .detection import Detection, Detector
from .face import Face
from .identity import Combine, Identity, build_identity, combine_identities
from .keypoints import draw_keypoints
from .onnx_session import Provider
from .packs import load_dlib, load_facexlib, load_lbp, load_mtcnn, load_opencv, load_pack
from .parsing import FaceParser, Part, load_parser, parse_face, part_mask
from .photos import read_photo, to_photos
from .recognition import FrozenRecogniser, load_recogniser_module
from .select import Choice, order_faces
from .similarity import cosine_similarity, mean_direction, unit, unit_distance

__all__ = [
    "Border",
    "Choice",
    "Combine",
    "Detection",
    "Detector",
    "Face",
    "FaceAnalysis",
    "FaceParser",
    "FrozenRecogniser",
    "Identity",
    "Part",
    "Provider",
    "Recogniser",
    "Search",
    "adopt_analysis",
    "arcface_crop",
    "build_identity",
    "combine_identities",
    "cosine_similarity",
    "differentiable_crop",
    "draw_keypoints",
    "expand_box",
    "ffhq_crop",
    "head_crop",
    "load_dlib",
    "load_facexlib",
    "load_lbp",
    "load_mtcnn",
    "load_opencv",
    "load_pack",
    "load_parser",
    "load_recogniser_module",
    "mean_direction",
    "order_faces",
    "parse_face",
    "part_mask",
    "read_photo",
    "to_photos",
    "unit",
    "unit_distance",
    "warp",
    "warp_tensor",
]
