"""How names on the command line become models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models_download import find_file, find_insightface_pack, list_insightface_packs

if TYPE_CHECKING:
    from ..faces import FaceAnalysis


def open_faces(name: str) -> FaceAnalysis:
    """The named pack, or OpenCV's networks as `sface`; auto takes a pack that is here, else MTCNN, whose weights come
    with a package."""
    from ..faces import load_mtcnn, load_opencv, load_pack

    if name in ("miniature", "miniature-judge"):
        from ..miniature.models.backend import miniature_analysis, miniature_judge

        return miniature_analysis() if name == "miniature" else miniature_judge()
    here = list_insightface_packs()
    if name == "auto":
        name = here[0] if here else "mtcnn"
    if name == "sface":
        detector, recogniser = "face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"
        return load_opencv(find_file("opencv_zoo", detector), find_file("opencv_zoo", recogniser))
    return load_mtcnn() if name == "mtcnn" else load_pack(find_insightface_pack(name))
