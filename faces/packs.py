"""Face analyses from files: insightface's packs, OpenCV's models, facexlib's weights, and two that need no file.

Paths come in as arguments: this room knows no folders of any host, and nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import LikenessError
from .align import arcface_crop
from .analysis import INSIGHTFACE_LICENCE, FaceAnalysis
from .detection import Detection, shrink_to
from .onnx_file import OnnxGraph, read_graph
from .onnx_session import Provider, open_session
from .opencv import opencv, without_warnings
from .recognition import TorchRecogniser, has_own_normalisation, load_recogniser_module, recogniser_name
from .retinaface import RetinaFaceDetector
from .scrfd import LAYOUTS, Scrfd

SFACE = "sface"
SFACE_INPUT, SFACE_WIDTH = [3, 112, 112], 128
YUNET_LICENCE = "YuNet: MIT"
AURAFACE_LICENCE = "AuraFace: Apache-2.0 as labelled by fal, but its detector file carries InsightFace's name"

# Files of the packs this project's adapters were trained with, for the sentence about what is missing.
PACK_FILES = {
    "buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"),
    "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
    "auraface": ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
}
PACK_SOURCES = {
    "buffalo_l": "https://huggingface.co/public-data/insightface (models/buffalo_l)",
    "antelopev2": "https://huggingface.co/DIAMONIK7777/antelopev2",
    "auraface": "https://huggingface.co/fal/AuraFace-v1",
}


class Task(Enum):
    """What a file of a pack is for."""

    DETECTION = "detection"
    RECOGNITION = "recognition"
    LANDMARKS = "landmarks"
    ATTRIBUTES = "attributes"
    SWAPPER = "swapper"


def classify(graph: OnnxGraph) -> Task | None:
    """A pack file's task by its shapes, as insightface tells them apart; None for anything else."""
    shapes = [shape[2:4] for shape in graph.inputs.values() if len(shape) == 4]
    if len(graph.outputs) in LAYOUTS:
        return Task.DETECTION
    if len(graph.inputs) == 2 and (128, 128) in shapes:
        return Task.SWAPPER
    if len(shapes) != 1:
        return None
    height, width = shapes[0]
    if (height, width) == (192, 192):
        return Task.LANDMARKS
    if (height, width) == (96, 96):
        return Task.ATTRIBUTES
    if height is not None and height == width and height >= 112 and height % 16 == 0:
        return Task.RECOGNITION
    return None


@dataclass(frozen=True)
class ArcFaceOnnx:
    """A recogniser of an insightface pack. `mean` and `std` normalise RGB 0..255."""

    session: Any
    name: str
    mean: float = 127.5
    std: float = 127.5

    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """See `Recogniser.embed`."""
        described = self.session.get_inputs()[0]
        size = described.shape[2] if isinstance(described.shape[2], int) else 112
        crop = arcface_crop(image_rgb, keypoints, size).astype(np.float32)
        planes = ((crop - self.mean) / self.std).transpose(2, 0, 1)[None]
        return self.session.run(None, {described.name: np.ascontiguousarray(planes)})[0].reshape(-1)


# --- insightface packs


def pack_folder(folder: Path) -> Path:
    """The folder that holds the pack's files: antelopev2's archive nests them one level deeper."""
    if not any(folder.glob("*.onnx")):
        for nested in sorted(child for child in folder.glob("*/") if any(child.glob("*.onnx"))):
            return nested
    return folder


def load_pack(folder: Path | str, provider: Provider = Provider.AUTO) -> FaceAnalysis:
    """An insightface pack (buffalo_l, antelopev2, AuraFace, any other) from its folder of .onnx files.

    Only the detector and the recogniser are opened, by onnxruntime; the insightface package is not needed. A pack
    without recogniser gives boxes and keypoints. `LikenessError` names pack, files and folder when files are missing.
    """
    outer = Path(folder)
    folder = pack_folder(outer)
    files: dict[Task, Path] = {}
    for path in sorted(folder.glob("*.onnx")):
        task = classify(read_graph(path, weights=False))
        if task is not None:
            files.setdefault(task, path)
    known = next((pack for pack in PACK_FILES if pack in outer.name.lower().replace("-", "")), None)
    if Task.DETECTION not in files or (known and Task.RECOGNITION not in files):
        raise LikenessError(_missing_pack(outer, known))
    recogniser = None
    if Task.RECOGNITION in files:
        path = files[Task.RECOGNITION]
        own = has_own_normalisation(read_graph(path, weights=False))
        mean, std = (0.0, 1.0) if own else (127.5, 127.5)
        recogniser = ArcFaceOnnx(open_session(path, provider), recogniser_name(path), mean, std)
    aura = recogniser is not None and recogniser.name == "auraface"
    return FaceAnalysis(
        name=outer.name,
        detector=Scrfd.open(files[Task.DETECTION], provider),
        recogniser=recogniser,
        licence=AURAFACE_LICENCE if aura else INSIGHTFACE_LICENCE,
        commercial=None if aura else False,
    )


def _missing_pack(folder: Path, known: str | None) -> str:
    present = sorted(path.name for path in pack_folder(folder).glob("*.onnx"))
    wanted = " and ".join(PACK_FILES[known]) if known else "a detector .onnx file with 6, 9, 10 or 15 outputs"
    source = f" from {PACK_SOURCES[known]}" if known else ""
    return (
        f"The face model pack '{folder.name}' is incomplete: it needs {wanted} in {folder}, which holds "
        f"{', '.join(present) or 'no .onnx file'}; put the missing files there{source}."
    )


# --- OpenCV's models (permissive licences)


def _model_bytes(path: Path) -> np.ndarray:
    """A model file as a buffer: OpenCV cannot open paths with non-ASCII letters on Windows."""
    if not path.is_file():
        raise LikenessError(f"The face model {path.name} is missing: put it into {path.parent}.")
    return np.frombuffer(path.read_bytes(), np.uint8)


@dataclass(frozen=True)
class YuNet:
    """OpenCV's small five-point detector (MIT)."""

    model: np.ndarray  # the file's bytes
    name: str = "YuNet"
    threshold: float = 0.7
    sizes: tuple[int, ...] = (640, 320, 1280)

    @classmethod
    def open(cls, path: Path) -> YuNet:
        """From its file; LikenessError for a damaged file, another model's, and an OpenCV without this detector."""
        detector = cls(_model_bytes(path))
        if not hasattr(opencv(), "FaceDetectorYN"):
            raise LikenessError(
                f"OpenCV {opencv().__version__} cannot run YuNet, which came with 4.5.4: pip install -U opencv-python."
            )
        try:
            detector.detect(np.zeros((64, 64, 3), np.uint8))
        except opencv().error as error:
            raise LikenessError(
                f"The detector {path.name} is damaged or another model: choose "
                "face_detection_yunet_2023mar.onnx, and download it again if this is it."
            ) from error
        return detector

    @cached_property
    def _network(self) -> Any:
        nothing = np.zeros(0, np.uint8)
        with without_warnings():
            return opencv().FaceDetectorYN.create("onnx", self.model, nothing, (320, 320), 0.1, 0.3, 5000)

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`."""
        small, scale = shrink_to(image_bgr, size or self.sizes[0])
        self._network.setInputSize((small.shape[1], small.shape[0]))
        rows = self._network.detect(np.ascontiguousarray(small))[1]
        found = []
        for row in np.zeros((0, 15), np.float32) if rows is None else rows:
            x, y, width, height = row[:4] / scale
            box = np.array([x, y, x + width, y + height], np.float32)
            found.append(Detection(box, float(row[14]), (row[4:14] / scale).reshape(5, 2).astype(np.float32)))
        return sorted(found, key=lambda detection: -detection.score)


def load_opencv(yunet: Path | str, sface: Path | str | None = None, provider: Provider = Provider.AUTO) -> FaceAnalysis:
    """YuNet, and SFace if given, from OpenCV's model zoo: free for commercial use, in 32 or 8 bits.

    SFace runs in onnxruntime: OpenCV 5 crashes on the 8-bit file. No adapter was trained on it.
    """
    opencv()  # to say now what is missing
    return FaceAnalysis(
        name="YuNet + SFace" if sface else "YuNet",
        detector=YuNet.open(Path(yunet)),
        recogniser=_sface(Path(sface), provider) if sface else None,
        licence=f"{YUNET_LICENCE}; SFace: Apache-2.0" if sface else YUNET_LICENCE,
        commercial=True,
    )


def _sface(path: Path, provider: Provider) -> ArcFaceOnnx:
    if not path.is_file():
        raise LikenessError(f"The face model {path.name} is missing: put it into {path.parent}.")
    session = open_session(path, provider, tidy=True)
    shapes = [list(part.shape) for part in (*session.get_inputs(), *session.get_outputs())]
    if len(shapes) != 2 or shapes[0][1:] != SFACE_INPUT or shapes[1][-1] != SFACE_WIDTH:
        raise LikenessError(
            f"The face model {path.name} is another network than SFace: choose face_recognition_sface_2021dec.onnx."
        )
    return ArcFaceOnnx(session, SFACE, mean=0.0, std=1.0)


# --- dlib's recogniser


def load_dlib(recogniser: Path | str, yunet: Path | str | None = None) -> FaceAnalysis:
    """dlib's recogniser with YuNet, or with MTCNN where there is no YuNet: torch alone, without dlib.

    Its author has released it into the public domain. Losses may look through it.
    """
    eyes = load_mtcnn() if yunet is None else load_opencv(yunet)
    return FaceAnalysis(
        name=f"{eyes.name} + dlib",
        detector=eyes.detector,
        recogniser=TorchRecogniser(load_recogniser_module(recogniser)),
        licence=f"{eyes.licence}; dlib's recogniser: CC0-1.0, public domain",
        commercial=eyes.commercial,
    )


# --- facexlib's weights


def load_facexlib(
    retinaface: Path | str, recogniser: Path | str | None = None, device: torch.device | str = "cpu"
) -> FaceAnalysis:
    """RetinaFace, and a recogniser if given (IR-SE50 or iresnet): torch alone, without onnxruntime or facexlib."""
    module = None if recogniser is None else load_recogniser_module(recogniser)
    return FaceAnalysis(
        name="RetinaFace" if module is None else f"RetinaFace + {module.name}",
        detector=RetinaFaceDetector.open(Path(retinaface), device),
        recogniser=None if module is None else TorchRecogniser(module.to(device)),
        licence="facexlib: MIT code; trained on WIDER FACE, terms of the weights unclear",
        commercial=None,
    )


# --- detectors that need no file


@dataclass(frozen=True)
class Mtcnn:
    """MTCNN with the weights inside the facenet-pytorch package. It searches all scales of an image by itself."""

    network: Any
    name: str = "MTCNN"
    threshold: float = 0.9
    sizes: tuple[int, ...] = (1280, 640)

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`."""
        small, scale = shrink_to(image_bgr, size or self.sizes[0])
        if min(small.shape[:2]) < self.network.min_face_size:  # it has no scale left to search, and raises
            return []
        boxes, scores, points = self.network.detect(np.ascontiguousarray(small[..., ::-1]), landmarks=True)
        if boxes is None:
            return []
        found = [
            Detection((box / scale).astype(np.float32), float(score), (five / scale).astype(np.float32))
            for box, score, five in zip(boxes, scores, points, strict=True)
        ]
        return sorted(found, key=lambda detection: -detection.score)


def load_mtcnn() -> FaceAnalysis:
    """MTCNN: boxes and five keypoints with no download, but no embeddings. Needs the facenet-pytorch package."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        raise LikenessError(
            "MTCNN needs a package: pip install --no-deps facenet-pytorch, or choose another face analysis."
        ) from None
    network = MTCNN(keep_all=True, device="cpu").eval()
    return FaceAnalysis("MTCNN", Mtcnn(network), None, "facenet-pytorch: MIT code and MTCNN weights", None)


@dataclass(frozen=True)
class LbpCascade:
    """scikit-image's frontal face cascade: boxes only, for cropping and masking where nothing else is there.

    It has no scores (0.5 stands for one) and reports false faces now and then.
    """

    smallest: float = 0.12  # of the image's shorter side
    name: str = "LBP cascade"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (1280,)

    def open(self) -> None:
        """Raise LikenessError where scikit-image is not installed."""
        _ = self._cascade

    @cached_property
    def _cascade(self) -> Any:
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError:
            raise LikenessError(
                "The LBP cascade needs a package: pip install scikit-image, or choose another face analysis."
            ) from None
        return Cascade(lbp_frontal_face_cascade_filename())

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`."""
        small, scale = shrink_to(image_bgr, size or self.sizes[0])
        least = max(24, round(self.smallest * min(small.shape[:2])))
        found = self._cascade.detect_multi_scale(
            np.ascontiguousarray(small[..., ::-1]),
            scale_factor=1.2,
            step_ratio=1,
            min_size=(least, least),
            max_size=small.shape[:2],
        )
        boxes = [np.array([f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]], np.float32) for f in found]
        return [Detection(box / np.float32(scale), 0.5, None) for box in boxes]


def load_lbp() -> FaceAnalysis:
    """The last resort: scikit-image's cascade, frontal faces, boxes only, never embeddings or alignment."""
    cascade = LbpCascade()
    cascade.open()
    return FaceAnalysis("LBP cascade (boxes only)", cascade, None, "scikit-image: BSD-3-Clause", True)
