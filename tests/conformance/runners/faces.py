"""Faces: crops, boxes, similarity."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from conformance import harness

from likeness.faces import align, ir_se50, parsing, retinaface, scrfd, similarity
from likeness.faces.iresnet import iresnet
from likeness.faces.recognition import FrozenRecogniser, load_recogniser_module
from likeness.faces.weights import filled

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


@harness.runs("faces", r"ir_se_block")
def ir_se_block(case: Any) -> dict[str, torch.Tensor]:
    block = ir_se50.bottleneck(case.weights, "", case.config["stride"])
    return {"y": filled(block, case.weights, "the block")(case.inputs["x"])}


@harness.runs("faces", r"iresnet_onnx")
def iresnet_onnx(case: Any) -> dict[str, torch.Tensor]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recogniser.onnx"
        path.write_bytes(case.inputs["onnx_file"].numpy().tobytes())
        module = load_recogniser_module(path)
    x = case.inputs["x"].clone().requires_grad_()
    embedding = module(x)
    (grad,) = torch.autograd.grad(embedding.square().mean(), x)
    return {"embedding": embedding, "grad": 1000 * grad[..., ::4, ::4]}


@harness.runs("faces", r"iresnet")
def torch_iresnet(case: Any) -> dict[str, torch.Tensor]:
    module = FrozenRecogniser(iresnet(case.weights), "case")
    x = (case.inputs["image_rgb"].permute(0, 3, 1, 2) / 127.5 - 1).requires_grad_()
    embedding = module(x)
    loss = (1 - similarity.cosine_similarity(embedding[:1], embedding[1:])).mean()
    (grad,) = torch.autograd.grad(loss, x)
    return {"embedding": embedding, "loss": loss.reshape(1), "grad": 1000 * grad[..., ::4, ::4]}


@harness.runs("faces", r"scrfd_decode", tolerances={"blob": 0.02})
def scrfd_decode(case: Any) -> dict[str, torch.Tensor]:
    config = case.config
    size = tuple(config["det_size"])
    image = case.inputs["image_bgr"].numpy().astype(np.uint8)
    canvas, scale = scrfd.letterbox(image, size)
    heads = [case.inputs[f"head_{i}"].numpy() for i in range(len(case.inputs) - 1)]
    rows, keypoints = scrfd.decode(heads, size, scale, config["det_thresh"], config["nms_thresh"])
    best = scrfd.best_by(rows, config["max_num"], scrfd.Metric(config["metric"]), image.shape[:2])
    outputs = {
        "blob": torch.from_numpy(scrfd.blob(canvas)[..., ::2, ::2].copy()),
        "detections": torch.from_numpy(rows),
        "detections_max": torch.from_numpy(rows[best]),
    }
    if keypoints is not None:
        outputs |= {"keypoints": torch.from_numpy(keypoints), "keypoints_max": torch.from_numpy(keypoints[best])}
    return outputs


def normalised(image: torch.Tensor, network: Any) -> torch.Tensor:
    mean, std = (image.new_tensor(values).reshape(1, 3, 1, 1) for values in (network.MEAN, network.STD))
    return (image - mean) / std


@harness.runs("faces", r"bisenet")
def bisenet(case: Any) -> dict[str, torch.Tensor]:
    network = parsing.bisenet(case.weights)
    main, sixteenth, coarse = network(normalised(case.inputs["image"], network))
    return {"logits": main, "logits16": sixteenth, "logits32": coarse, "labels": main.argmax(1)}


@harness.runs("faces", r"parsenet")
def parsenet(case: Any) -> dict[str, torch.Tensor]:
    network = parsing.parsenet(case.weights)
    logits, image = network(normalised(case.inputs["image"], network))
    return {"logits": logits, "image_out": image, "labels": logits.argmax(1)}


@harness.runs("faces", r"retinaface")
def torch_retinaface(case: Any) -> dict[str, torch.Tensor]:
    network = retinaface.retinaface(case.weights)
    image = case.inputs["image_bgr"]
    loc, conf, landm = network((image - torch.tensor(retinaface.BGR_MEAN)).permute(2, 0, 1)[None])
    boxes, scores, keypoints = retinaface.find(
        network, image.numpy(), case.config["conf_threshold"], case.config["nms_threshold"]
    )
    detections = np.concatenate([boxes, scores[:, None], keypoints.reshape(-1, 10)], 1)
    return {
        "loc": loc,
        "conf": conf,
        "landm": landm,
        "priors": retinaface.priors(*image.shape[:2]),
        "detections": torch.from_numpy(detections),
    }
