"""Model files with random weights in the official layouts, for the loaders of a real server. No downloads.

Weights are slices of one noise pool, scaled by 1/sqrt(fan_in): a gigabyte takes a second and is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy import sd1_clip
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file
from torch import Tensor, nn

from likeness.faces.scrfd import blob, letterbox

_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
SD15_FULL: dict[str, Any] = {
    **_UNET,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "num_heads": 8,
    "num_head_channels": -1,
}
SD15_SMALL: dict[str, Any] = {
    **SD15_FULL,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
SDXL_SMALL: dict[str, Any] = {  # the depths of Segmind Vega, which the host recognises
    **_UNET,
    "num_res_blocks": [2] * 3,
    "channel_mult": [1] * 3,
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": -1,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_heads": -1,
    "num_head_channels": 64,
}

# Cross-attention layers of SD1.5 in the order of an adapter's slots 1, 3, ... 31: down, up, mid.
SD15_WIDTHS = [320, 320, 640, 640, 1280, 1280] + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]
SD15_CONTEXT = 768


class _Pool:
    """A reel of noise from which tensors of any shape are cut."""

    def __init__(self, seed: int) -> None:
        self._noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed))
        self._at = 0

    def cut(self, shape: torch.Size | tuple[int, ...], std: float) -> Tensor:
        length = math.prod(shape)
        parts, missing = [], length
        while missing:
            part = self._noise[self._at : self._at + missing]
            parts.append(part)
            missing -= part.numel()
            self._at = (self._at + part.numel() + 7919) % (self._noise.numel() - 1)  # never in step with itself
        return (torch.cat(parts) * std).reshape(shape)


def _weight(pool: _Pool, key: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    if len(shape) >= 2:
        return pool.cut(shape, 1 / math.sqrt(math.prod(shape[1:])))
    if key.endswith("weight"):
        return 1 + pool.cut(shape, 0.1)
    return pool.cut(shape, 0.1)


def _fill(module: nn.Module, prefix: str, pool: _Pool, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for key, parameter in module.named_parameters():
        yield prefix + key, _weight(pool, key, parameter.shape).to(dtype).contiguous()


def write_checkpoint(path: Path, config: dict[str, Any], *, clip: bool, seed: int = 0) -> Path:
    """A checkpoint that CheckpointLoaderSimple accepts: UNet, full-size CLIP-L if asked, TAESD as its VAE; fp16."""
    import comfy.ops

    pool = _Pool(seed)
    with torch.device("meta"):
        unet = UNetModel(**config, dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init)
        vae = comfy.taesd.taesd.TAESD()
    weights = dict(_fill(unet, "model.diffusion_model.", pool, torch.float16))
    if clip:
        text = sd1_clip.SDClipModel(device="meta", dtype=torch.float16)
        weights.update(_fill(text.transformer, "cond_stage_model.transformer.", pool, torch.float16))
        weights.pop("cond_stage_model.transformer.text_projection.weight", None)
    weights.update(_fill(vae, "first_stage_model.", pool, torch.float16))
    weights["first_stage_model.vae_scale"] = torch.tensor(1.0)
    weights["first_stage_model.vae_shift"] = torch.tensor(0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path


def write_controlnet(path: Path, config: dict[str, Any], *, seed: int = 5) -> Path:
    """A file that Load ControlNet Model accepts, for a UNet of this configuration; fp16, in the original layout."""
    import comfy.cldm.cldm

    settings = {key: value for key, value in config.items() if key not in ("out_channels", "transformer_depth_output")}
    with torch.device("meta"):
        net = comfy.cldm.cldm.ControlNet(**settings, hint_channels=3, dtype=torch.float16, device="meta")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(_fill(net, "", _Pool(seed), torch.float16)), path)
    return path


def _linear(weights: dict[str, Tensor], pool: _Pool, name: str, rows: int, columns: int, *, bias: bool = True) -> None:
    weights[f"{name}.weight"] = _weight(pool, "weight", (rows, columns))
    if bias:
        weights[f"{name}.bias"] = _weight(pool, "bias", (rows,))


def _norm(weights: dict[str, Tensor], pool: _Pool, name: str, width: int) -> None:
    weights[f"{name}.weight"] = _weight(pool, "weight", (width,))
    weights[f"{name}.bias"] = _weight(pool, "bias", (width,))


def _key_value_weights(pool: _Pool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for layer, width in enumerate(SD15_WIDTHS):
        for name in ("to_k_ip", "to_v_ip"):
            _linear(weights, pool, f"{2 * layer + 1}.{name}", width, SD15_CONTEXT, bias=False)
    return weights


def _lora_weights(pool: _Pool, rank: int, scale: float) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for layer, width in enumerate(SD15_WIDTHS):
        for slot, context in ((2 * layer, width), (2 * layer + 1, SD15_CONTEXT)):
            for name, columns in (("q", width), ("k", context), ("v", context), ("out", width)):
                weights[f"{slot}.to_{name}_lora.down.weight"] = pool.cut((rank, columns), 1 / math.sqrt(columns))
                weights[f"{slot}.to_{name}_lora.up.weight"] = pool.cut((width, rank), scale / math.sqrt(rank))
    return weights


def faceid_sd15(*, tokens: int = 4, rank: int = 128, seed: int = 1, id_dim: int = 512) -> dict[str, dict[str, Tensor]]:
    """`ip-adapter-faceid_sd15.bin`: MLPProjModel (ID), 16 pairs of key/value matrices, LoRA on all 32 slots; fp16.

    id_dim: numbers of the recogniser's embedding; ArcFace's have 512, dlib's and SFace's 128."""
    pool = _Pool(seed)
    projection: dict[str, Tensor] = {}
    _linear(projection, pool, "proj.0", 1024, id_dim)
    _linear(projection, pool, "proj.2", tokens * SD15_CONTEXT, 1024)
    _norm(projection, pool, "norm", SD15_CONTEXT)
    layers = {**_key_value_weights(pool), **_lora_weights(pool, rank, scale=0.2)}
    return _half({"image_proj": projection, "ip_adapter": layers})


def plus_sd15(*, dim: int = 768, depth: int = 4, tokens: int = 16, encoder: int = 1280, seed: int = 2):
    """`ip-adapter-plus_sd15`: Resampler on the penultimate states of ViT-H, 16 tokens; fp16."""
    pool = _Pool(seed)
    projection = {"latents": pool.cut((1, tokens, dim), 1.0)}
    _linear(projection, pool, "proj_in", dim, encoder)
    _linear(projection, pool, "proj_out", SD15_CONTEXT, dim)
    _norm(projection, pool, "norm_out", SD15_CONTEXT)
    for layer in range(depth):
        attention, forward = f"layers.{layer}.0", f"layers.{layer}.1"
        _norm(projection, pool, f"{attention}.norm1", dim)
        _norm(projection, pool, f"{attention}.norm2", dim)
        _linear(projection, pool, f"{attention}.to_q", dim, dim, bias=False)
        _linear(projection, pool, f"{attention}.to_kv", 2 * dim, dim, bias=False)
        _linear(projection, pool, f"{attention}.to_out", dim, dim, bias=False)
        _norm(projection, pool, f"{forward}.0", dim)
        _linear(projection, pool, f"{forward}.1", 4 * dim, dim, bias=False)
        _linear(projection, pool, f"{forward}.3", dim, 4 * dim, bias=False)
    return _half({"image_proj": projection, "ip_adapter": _key_value_weights(pool)})


def _half(groups: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {group: {key: value.half() for key, value in weights.items()} for group, weights in groups.items()}


def write_adapter(path: Path, groups: dict[str, dict[str, Tensor]]) -> Path:
    """Nested in a pickle for `.bin`, flat (`image_proj.*`, `ip_adapter.*`) for `.safetensors`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(groups, path)
    else:
        save_file({f"{g}.{key}": value for g, weights in groups.items() for key, value in weights.items()}, path)
    return path


def write_recogniser(path: Path, *, seed: int = 3, width: int = 16) -> Path:
    """A face recogniser's ONNX file in the manner of iresnet: (N, 3, 112, 112) in -1..1 to (N, 512), random weights.

    Convolutions with PRelu and BatchNormalization, two residual additions, Flatten, Gemm, BatchNormalization.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    pool = _Pool(seed)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def convolution(x: str, name: str, c_in: int, c_out: int, stride: int = 1, size: int = 3) -> str:
        weight = constant(f"{name}.weight", _weight(pool, "weight", (c_out, c_in, size, size)))
        bias = constant(f"{name}.bias", pool.cut((c_out,), 0.1))
        pads = [size // 2] * 4
        return node("Conv", [x, weight, bias], name, kernel_shape=[size, size], strides=[stride] * 2, pads=pads)

    def prelu(x: str, name: str, channels: int) -> str:
        return node("PRelu", [x, constant(f"{name}.slope", 0.25 + pool.cut((channels, 1, 1), 0.02))], name)

    def batch_norm(x: str, name: str, channels: int) -> str:
        inputs = [
            constant(f"{name}.weight", 1 + pool.cut((channels,), 0.1)),
            constant(f"{name}.bias", pool.cut((channels,), 0.1)),
            constant(f"{name}.mean", pool.cut((channels,), 0.1)),
            constant(f"{name}.var", torch.ones(channels)),
        ]
        return node("BatchNormalization", [x, *inputs], name, epsilon=1e-5)

    x = prelu(convolution("input.1", "stem", 3, width), "stem_act", width)
    channels = width
    for stage in range(2):
        name, wider = f"layer{stage + 1}", channels * 2
        branch = batch_norm(x, f"{name}.bn1", channels)
        branch = prelu(convolution(branch, f"{name}.conv1", channels, wider), f"{name}.prelu", wider)
        branch = convolution(branch, f"{name}.conv2", wider, wider, stride=4)
        shortcut = convolution(x, f"{name}.downsample", channels, wider, stride=4, size=1)
        x, channels = node("Add", [branch, shortcut], f"{name}.add"), wider
    x = node("Flatten", [batch_norm(x, "bn2", channels)], "flatten", axis=1)
    features = channels * 7 * 7
    gemm = [x, constant("fc.weight", _weight(pool, "weight", (512, features))), constant("fc.bias", torch.zeros(512))]
    x = batch_norm(node("Gemm", gemm, "fc", transB=1), "features", 512)
    inputs = [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["N", 3, 112, 112])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 512])]
    return _write_onnx(path, helper.make_graph(nodes, "iresnet", inputs, outputs, constants))


@dataclass(frozen=True)
class KnownFace:
    """A face that a detector of `write_detector` knows by heart. Pixels of `photo` (H, W, 3) uint8 RGB."""

    photo: np.ndarray
    box: np.ndarray  # (4,)
    keypoints: np.ndarray  # (5, 2)


def write_detector(path: Path, faces: Sequence[KnownFace], *, side: int = 640, window: int = 24) -> Path:
    """A detector's ONNX file in SCRFD's layout, without training: it knows the given photos by heart.

    At every cell of the stride-8 map it measures the squared distance d between the `window` around that cell and each
    remembered one (sum x^2 - 2 x p + p^2, two convolutions); the score is sigmoid(6 - 2 d). Photos must come
    unchanged, pixel for pixel. The maps of the strides 16 and 32 are zero.
    """
    from onnx import TensorProto, helper, numpy_helper

    half, cells = window // 2, side // 8
    windows, boxes, points = [], [], []
    for face in faces:
        canvas, scale = letterbox(np.ascontiguousarray(face.photo[..., ::-1]), (side, side))
        x1, y1, x2, y2 = face.box * scale
        centre = np.clip(np.round(np.array([(x1 + x2) / 2, (y1 + y2) / 2]) / 8), 2, cells - 2) * 8
        column, row = centre.astype(int)
        windows.append(blob(canvas)[0, :, row - half : row + half, column - half : column + half])
        boxes.append(np.array([centre[0] - x1, centre[1] - y1, x2 - centre[0], y2 - centre[1]]) / 8)
        points.append(((face.keypoints * scale - centre) / 8).reshape(-1))
    remembered = np.stack(windows).astype(np.float32)
    certainty = 1 / (1 + math.exp(-6))  # the score of a perfect match, by which boxes and points are divided
    nodes, constants, outputs = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def rows(x: str, name: str, width: int) -> None:
        x = node("Transpose", [x], f"{name}.last", perm=[0, 2, 3, 1])
        node("Reshape", [x, constant(f"{name}.shape", np.array([-1, width], np.int64))], name)

    def for_first_anchor(values: list[np.ndarray]) -> np.ndarray:
        table = np.stack(values).T / certainty  # (numbers, faces)
        return np.concatenate([table, np.zeros_like(table)])[:, :, None, None].astype(np.float32)

    convolution = {"kernel_shape": [window] * 2, "strides": [8, 8], "pads": [half, half, half - 8, half - 8]}
    squares = node("Mul", ["input.1", "input.1"], "squares")
    ones = constant("ones", np.full((1, 3, window, window), -2, np.float32))
    products = constant("products", 4 * remembered)
    bias = constant("bias", (6 - 2 * (remembered**2).sum((1, 2, 3))).astype(np.float32))
    energy = node("Conv", [squares, ones], "energy", **convolution)
    match = node("Conv", ["input.1", products, bias], "match", **convolution)
    scores = node("Sigmoid", [node("Add", [energy, match], "nearness")], "scores")
    best = node("ReduceMax", [scores], "best", axes=[1], keepdims=1)
    nothing = node("Mul", [best, constant("zero", np.zeros((1, 1, 1, 1), np.float32))], "nothing")
    rows(node("Concat", [best, nothing], "both", axis=1), "score_8", 1)
    for name, values, width in (("bbox_8", boxes, 4), ("kps_8", points, 10)):
        weight = constant(f"{name}.weight", for_first_anchor(values))
        rows(node("Conv", [scores, weight], f"{name}.map", kernel_shape=[1, 1]), name, width)
    for stride in (16, 32):
        for name, width in (("score", 1), ("bbox", 4), ("kps", 10)):
            zeros = np.zeros((2 * (side // stride) ** 2, width), np.float32)
            node("Identity", [constant(f"{name}_{stride}.zeros", zeros)], f"{name}_{stride}")
    for name, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            shape = [2 * (side // stride) ** 2, width]
            outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, shape))
    inputs = [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, side, side])]
    return _write_onnx(path, helper.make_graph(nodes, "known_faces", inputs, outputs, constants))


def _write_onnx(path: Path, graph: Any) -> Path:
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
