"""Restoration: face restorers, super-resolution, tiles, and faces pasted back as the official helpers paste them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from conformance import harness
from spandrel.architectures.Compact import Compact

from likeness.faces.align import ffhq_template, invert, robust_similarity_transform, warp
from likeness.faces.parsing import PARSENET_ORDER
from likeness.faces.weights import filled
from likeness.restoration import colour, paste
from likeness.restoration.codeformer import CodeFormer
from likeness.restoration.restorers import FaceRestorer, gfpgan, restorer_of
from likeness.restoration.spandrel_files import described
from likeness.restoration.tiles import upscaled


def taps(config: dict[str, Any], name: str) -> dict[int, int] | None:
    return {int(size): place for size, place in config[name].items()} if name in config else None


@harness.runs("restoration", r"codeformer")
def codeformer(case: Any) -> dict[str, torch.Tensor]:
    config = case.config
    network = CodeFormer(
        case.weights,
        config.get("n_head", 8),
        taps(config, "fuse_encoder_block"),
        taps(config, "fuse_generator_block"),
    )
    filled(network, case.weights, "the case")
    outputs = {}
    for name in case.expected:
        if name.startswith("image_w"):
            w, way = name.removeprefix("image_w").split("_")
            outputs[name] = network(case.inputs["image"], float(w), way == "adain").image
    _, logits, encoded = network(case.inputs["image"])
    whole = {"logits": logits, "lq_feat": encoded}
    return outputs | {name: value for name, value in whole.items() if name in case.expected}


@harness.runs("restoration", r"gfpgan_clean")
def gfpgan_clean(case: Any) -> dict[str, torch.Tensor]:
    network, _ = gfpgan(case.weights)
    network.input_is_latent = case.config.get("input_is_latent", True)  # no weight tells it; released files' are
    image, sides = network(case.inputs["image"], return_rgb=True, randomize_noise=False)
    return {"image": image, "rgb_last": sides[-1]}


@harness.runs("restoration", r"restoreformer")
def restoreformer(case: Any) -> dict[str, torch.Tensor]:
    restorer: FaceRestorer = restorer_of(case.weights, "the case")
    image = case.inputs["image"]
    return {"image": restorer.restore(image), "raw": restorer.network(image * 2 - 1)[0]}


@harness.runs("restoration", r"gray_adain")
def gray_adain(case: Any) -> dict[str, torch.Tensor]:
    restored, crop = (case.inputs[name].flip(-1).permute(2, 0, 1) / 255 for name in ("restored_bgr", "input_bgr"))

    def as_bgr(image: torch.Tensor) -> torch.Tensor:
        return image.permute(1, 2, 0).flip(-1) * 255

    return {"gray": as_bgr(colour.grey(restored)), "image": as_bgr(colour.grey_like(restored, crop))}


# --- pasting, step by step as the official helpers do it: half a pixel off, uint8 at the end


def face_mask(case: Any, number: int, inverse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One face's soft mask in the image, and what its pixels are multiplied by."""
    config = case.config
    side, scale = config["face_size"], config["upscale_factor"]
    parsed = None
    if config["use_parse"]:
        labels = case.inputs["labels64"][number].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        edge = paste.parsed_edge(np.array(PARSENET_ORDER, np.uint8)[labels])
        edge = cv2.resize(edge.astype(np.float64), (side, side))
        parsed = cv2.warpAffine(edge, inverse, size)  # in float64 OpenCV knows the 32nd part of a pixel only
    if parsed is not None and config["helper"] == "facexlib":
        return np.stack([parsed, np.ones_like(parsed)])
    inside = warp(np.ones((side, side, 1), np.float32), inverse, size)[..., 0]
    inside = cv2.erode(inside, np.ones((int(2 * scale), int(2 * scale)), np.uint8))
    square = paste.square_edge(inside)
    return np.stack([square if parsed is None else np.minimum(square, parsed), inside])


def pasted(case: Any, faces: np.ndarray, inverses: list[np.ndarray], background: np.ndarray) -> np.ndarray:
    picture, size = background.astype(np.float32), (background.shape[1], background.shape[0])
    for number, (face, inverse) in enumerate(zip(faces, inverses, strict=True)):
        mask, inside = face_mask(case, number, inverse, size)[..., None]
        picture = mask * inside * warp(face, inverse, size) + (1 - mask) * picture
    return np.trunc(picture)


@harness.runs("restoration", r"paste_back_\w+")
def paste_back(case: Any) -> dict[str, torch.Tensor]:
    config, scale = case.config, case.config["upscale_factor"]
    template = ffhq_template(config["face_size"])
    matrices = [robust_similarity_transform(points, template) for points in case.inputs["keypoints"].numpy()]
    inverses = [invert(matrix) * scale for matrix in matrices]
    offset = np.array([[0, 0, 0.5 * scale if scale > 1 else 0]] * 2)
    used = [inverse + offset for inverse in inverses]
    source = next((value for name, value in case.inputs.items() if "background" in name), case.inputs["image_bgr"])
    size = int(case.inputs["image_bgr"].shape[1] * scale), int(case.inputs["image_bgr"].shape[0] * scale)
    is_own = source is case.inputs["image_bgr"]
    how = cv2.INTER_LINEAR if is_own and config["helper"] == "codeformer" else cv2.INTER_LANCZOS4
    background = cv2.resize(source.numpy().astype(np.uint8), size, interpolation=how)
    faces = case.inputs["restored_bgr"].numpy()
    outputs = {
        "image_bgr": pasted(case, faces, used, background),
        "mask255": pasted(case, np.full_like(faces, 255), used, np.zeros_like(background))[..., 0],
        "matrix": np.stack(matrices),
        "inverse": np.stack(inverses),
    }
    return {name: torch.from_numpy(value).float() for name, value in outputs.items() if name in case.expected}


# --- super-resolution


@harness.runs("restoration", r"rrdbnet|srvgg\w*")
def super_resolution(case: Any) -> dict[str, torch.Tensor]:
    if case.config.get("act_type", "prelu") == "prelu":
        network = described(case.weights, "the case").model.eval()
    else:  # no released file has another, and spandrel reads none
        network = filled(Compact(**case.config), case.weights, "the case")
    return {"image": network(case.inputs["image"])}


@harness.runs("restoration", r"tiled_scale")
def tiled_scale(case: Any) -> dict[str, torch.Tensor]:
    config, network = case.config, described(case.weights, "the case").eval()
    stride = config.get("output_stride", 1)
    rows = [
        upscaled(image[None], network, config["scale"], (config["tile"],) * 2, config["overlap"])
        for image in case.inputs["image"]
    ]
    return {"image": torch.cat(rows)[..., ::stride, ::stride]}
