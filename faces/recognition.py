"""Recognisers as torch modules: for losses, and where onnxruntime is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import LikenessError
from .align import ARCFACE, Template
from .dlib_centre import CENTRE
from .dlib_resnet import CHIP, Centred, dlib_resnet
from .ir_se50 import ir_se, is_ir_se
from .iresnet import iresnet, is_iresnet
from .onnx_file import OnnxGraph, read_graph
from .onnx_iresnet import onnx_iresnet
from .weights import read_network_weights

DLIB = "dlib"
_RECOGNISER_OF_FILE = {"w600k_r50": "buffalo_l", "glintr100": "antelopev2"}


def recogniser_name(path: Path | str) -> str:
    """The name of the embedding space of a recogniser file.

    Known files have the name of the pack they came with, wherever they lie; AuraFace uses the file name of
    antelopev2's and is told apart by its folder. Others are `folder/file`.
    """
    path = Path(path)
    if any("auraface" in part.lower().replace("-", "").replace("_", "") for part in path.parts[-4:]):
        return "auraface"
    return _RECOGNISER_OF_FILE.get(path.stem.lower(), f"{path.parent.name}/{path.stem}")


def has_own_normalisation(graph: OnnxGraph) -> bool:
    """Whether a recogniser normalises by itself: old MXNet exports have Sub and Mul among the first nodes."""
    first = {node.kind for node in graph.nodes[:8]}
    return {"Sub", "Mul"} <= first


class FrozenRecogniser(nn.Module):
    """A recogniser that only ever measures.

    Crops (B, 3, side, side), RGB -1..1, on its template (ArcFace's 112 pixels, where nothing else is said) to
    embeddings (B, D). It has no trainable parameter, stays in evaluation mode whatever `train()` says, and computes in
    float32 under autocast; gradients reach the crops.
    """

    def __init__(self, network: nn.Module, name: str, normalises: bool = False, template: Template = ARCFACE):
        super().__init__()
        self.network = network.float().requires_grad_(False)
        self.name = name
        self.normalises = normalises  # the network wants 0..255
        self.template = template
        self.train(False)

    def train(self, mode: bool = True) -> FrozenRecogniser:
        return super().train(False)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        with torch.autocast(crops.device.type, enabled=False):
            x = crops.float()
            return self.network((x + 1) * 127.5 if self.normalises else x)


def load_recogniser_module(path: Path | str) -> FrozenRecogniser:
    """A differentiable recogniser: an iresnet (.onnx, .pth, .safetensors), IR-SE50 (.pth), or dlib's (.dat)."""
    path = Path(path)
    if path.suffix.lower() == ".dat":
        return _dlib(path)
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise LikenessError(f"The recogniser {path.name} is missing: put it into {path.parent}.")
        own = has_own_normalisation(read_graph(path, weights=False))
        return FrozenRecogniser(onnx_iresnet(path), recogniser_name(path), own)
    weights = read_network_weights(path)
    if is_iresnet(weights):
        return FrozenRecogniser(iresnet(weights), recogniser_name(path))
    if is_ir_se(weights):
        return FrozenRecogniser(ir_se(weights), "ir_se50")
    raise LikenessError(
        f"The file {path.name} is not a face recogniser: choose an iresnet (.onnx, .pth), IR-SE50 weights (.pth) or "
        "dlib's (.dat)."
    )


def _dlib(path: Path) -> FrozenRecogniser:
    network = dlib_resnet(path)
    outputs = network.fc.out_features
    if outputs != len(CENTRE):
        raise LikenessError(
            f"The recogniser {path.name} has embeddings of width {outputs}, and dlib's have {len(CENTRE)}: choose "
            "dlib_face_recognition_resnet_model_v1.dat."
        )
    return FrozenRecogniser(Centred(network, CENTRE), DLIB, normalises=True, template=CHIP)


@dataclass(frozen=True)
class TorchRecogniser:
    """A torch recogniser as a `Recogniser` of `FaceAnalysis`."""

    module: FrozenRecogniser

    @property
    def name(self) -> str:
        return self.module.name

    @property
    def template(self) -> Template:
        """Which part of a photo it sees."""
        return self.module.template

    @torch.no_grad()
    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """See `Recogniser.embed`."""
        crop = torch.from_numpy(self.template.crop(image_rgb, keypoints)).permute(2, 0, 1)[None].float()
        crop = crop.to(_device(self.module))
        return self.module(crop / 127.5 - 1)[0].cpu().numpy()

    def measure(self, pictures: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of the faces with these keypoints (B, 5, 2) in images (B, 3, H, W) 0..1, for losses."""
        return self.module((self.template.crops(pictures, keypoints) - 0.5) / 0.5)


def _device(module: nn.Module) -> torch.device:
    return next(tensor.device for tensor in (*module.buffers(), *module.parameters()))
