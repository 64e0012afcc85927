"""Faces: crops, boxes, similarity."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from likeness.faces import align, similarity

harness = sys.modules["likeness_conformance"]
CROP_8BIT = {"crop_uint8": 1.1}  # the procedures allow one grey level for ties in rounding


def stacked(rows: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows)).float()


@harness.runs("faces", r"norm_crop", tolerances=CROP_8BIT)
def norm_crop(case: Any) -> dict[str, torch.Tensor]:
    size, stride = case.config["image_size"], case.config["crop_stride"]
    image = case.inputs["image"].numpy()
    keypoints = case.inputs["keypoints"].numpy()
    target = align.arcface_template(size)
    return {
        "matrix": stacked([align.similarity_transform(points, target) for points in keypoints]),
        "crop": stacked([align.arcface_crop(image, points, size)[::stride, ::stride] for points in keypoints]),
        "crop_uint8": stacked(
            [align.arcface_crop(image.astype(np.uint8), points, size)[::stride, ::stride] for points in keypoints]
        ),
    }


@harness.runs("faces", r"landmark_crop")
def landmark_crop(case: Any) -> dict[str, torch.Tensor]:
    size, stride = case.config["size"], case.config["crop_stride"]
    image = case.inputs["image"].numpy()
    matrices = [
        align.landmark_matrix(box, size, case.config["margin"], float(rotation))
        for box, rotation in zip(case.inputs["bbox"].numpy(), case.inputs["rotation"], strict=True)
    ]
    return {
        "matrix": stacked(matrices),
        "crop": stacked([align.warp(image, matrix, (size, size))[::stride, ::stride] for matrix in matrices]),
        "points": stacked(
            [
                align.landmark_points(raw, matrix, size)
                for raw, matrix in zip(case.inputs["raw_points"].numpy(), matrices, strict=True)
            ]
        ),
    }


@harness.runs("faces", r"facexlib_align", tolerances={"matrix": 1e-3, "inverse": 1e-3, "template": 1e-3, **CROP_8BIT})
def facexlib_align(case: Any) -> dict[str, torch.Tensor]:
    config = case.config
    stride, ratio = config["crop_stride"], tuple(config["crop_ratio"])
    template = align.ffhq_template(config["face_size"], ratio)
    size = int(config["face_size"] * ratio[1]), int(config["face_size"] * ratio[0])
    image = case.inputs["image"].numpy().astype(np.uint8)
    matrices = [align.robust_similarity_transform(points, template) for points in case.inputs["keypoints"].numpy()]
    crops = [
        align.warp(image, matrix, size, align.Border(config["border"]), (135.0, 133.0, 132.0)) for matrix in matrices
    ]
    return {
        "template": torch.from_numpy(template).float(),
        "matrix": stacked(matrices),
        "inverse": stacked([align.invert(matrix) * config["upscale_factor"] for matrix in matrices]),
        "crop_uint8": stacked([crop[::stride, ::stride] for crop in crops]),
    }


@harness.runs("faces", r"bbox_expand")
def bbox_expand(case: Any) -> dict[str, torch.Tensor]:
    factor, size = case.config["factor"], case.config["crop_size"]
    image, boxes = case.inputs["image"].numpy(), case.inputs["bbox"].numpy()
    square = np.trunc(align.expand_box(boxes, factor))
    return {
        "square": torch.from_numpy(square).float(),
        "each_side": torch.from_numpy(np.trunc(align.expand_box(boxes, factor, square=False))).float(),
        "square_clipped": torch.from_numpy(align.clip_box(square, image.shape[:2])).float(),
        "crop": stacked(
            [
                align.warp(image, align.box_matrix(align.expand_box(box, factor), size), (size, size))
                for box in boxes[:3]
            ]
        ),
    }


@harness.runs("faces", r"id_similarity")
def id_similarity(case: Any) -> dict[str, torch.Tensor]:
    a, b = case.inputs["a"], case.inputs["b"]
    cosine = similarity.cosine_similarity(a, b)
    return {
        "cosine": cosine,
        "cosine_distance": 1 - cosine,
        "l2_normed": similarity.unit_distance(a, b),
        "mean_reference_cosine": similarity.cosine_similarity(a, similarity.mean_direction(b)[None])[:, 0],
        "normed_a": similarity.unit(a),
    }
