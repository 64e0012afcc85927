"""Photos that come with installed packages, and small insightface packs written as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """512 x 512 RGB, one face."""
    import skimage.data

    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def six_people() -> np.ndarray:
    """886 x 1280 RGB, six faces."""
    data = pytest.importorskip("insightface.data")
    return np.ascontiguousarray(data.get_image("t1")[..., ::-1])


@pytest.fixture(scope="session")
def mtcnn():
    pytest.importorskip("facenet_pytorch")
    from likeness.faces import load_mtcnn

    return load_mtcnn()


def _save(path: Path, nodes: list, weights: dict[str, np.ndarray], inputs: dict, outputs: dict) -> None:
    import onnx
    from onnx import helper, numpy_helper

    def described(shapes: dict) -> list:
        return [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in shapes.items()]

    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "test", described(inputs), described(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def _write_bright_spot_detector(path: Path, side: int | str = "side") -> None:
    """SCRFD's outputs for a network that takes a bright cell of 8 pixels for a face of 48 pixels around it."""
    from onnx import helper

    weights = {"flat1": np.array([-1, 1]), "flat4": np.array([-1, 4]), "flat10": np.array([-1, 10])}
    nodes, outputs = [], {}
    offsets = np.array([-1, -1, 1, -1, 0, 0, -1, 1, 1, 1], np.float32)
    for kind, values in (("score", 1), ("box", 4), ("point", 10)):
        for stride in (8, 16, 32):
            name = f"{kind}{stride}"
            weight = np.zeros((2 * values, 3, stride, stride), np.float32)
            if kind == "score":
                weight += 40 / (3 * stride * stride)  # bright: 40, black: -40; bias -20
                bias = np.full(2, -20.0 if stride == 8 else -100.0, np.float32)
            else:
                bias = np.tile(np.full(4, 3.0, np.float32) if kind == "box" else offsets, 2)
            weights |= {f"{name}.w": weight, f"{name}.b": bias}
            nodes += [
                helper.make_node(
                    "Conv",
                    ["x", f"{name}.w", f"{name}.b"],
                    [f"{name}.c"],
                    kernel_shape=[stride] * 2,
                    strides=[stride] * 2,
                ),
                helper.make_node("Transpose", [f"{name}.c"], [f"{name}.t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.t", f"flat{values}"], [f"{name}.r"]),
                helper.make_node("Sigmoid" if kind == "score" else "Identity", [f"{name}.r"], [name]),
            ]
            outputs[name] = [f"n_{stride}", values]
    _save(path, nodes, weights, {"x": [1, 3, side, side]}, outputs)


def _write_yunet(path: Path) -> None:
    """YuNet's outputs for a network that takes a bright cell of 8 pixels for a face of 40 pixels around its corner."""
    from onnx import helper

    offsets = np.array([-1, -1, 1, -1, 0, 0, -1, 1, 1, 1], np.float32)
    values = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    weights: dict[str, np.ndarray] = {f"flat_{kind}": np.array([1, -1, n]) for kind, n in values.items()}
    nodes, outputs = [], {}
    for kind, count in values.items():
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            weight = np.zeros((count, 3, stride, stride), np.float32)
            if count == 1:
                weight += 40 / (3 * 255 * stride * stride)  # YuNet sees 0..255
                bias = np.full(1, -20.0 if stride == 8 else -100.0, np.float32)
            else:
                bias = offsets if kind == "kps" else np.array([0, 0, np.log(5), np.log(5)], np.float32)
            weights |= {f"{name}.w": weight, f"{name}.b": bias}
            nodes += [
                helper.make_node(
                    "Conv",
                    ["input", f"{name}.w", f"{name}.b"],
                    [f"{name}.c"],
                    kernel_shape=[stride] * 2,
                    strides=[stride] * 2,
                ),
                helper.make_node("Transpose", [f"{name}.c"], [f"{name}.t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.t", f"flat_{kind}"], [name if count > 1 else f"{name}.r"]),
            ]
            if count == 1:
                nodes.append(helper.make_node("Sigmoid", [f"{name}.r"], [name]))
            outputs[name] = [1, (640 // stride) ** 2, count]
    _save(path, nodes, weights, {"input": [1, 3, 640, 640]}, outputs)


def _write_recogniser(path: Path, own_normalisation: bool = False, seed: int = 0, width: int = 16) -> None:
    """A graph of the six kinds of nodes an iresnet export has: (B, 3, 112, 112) to (B, width)."""
    from onnx import helper

    random = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0, base: float = 0.0) -> np.ndarray:
        return (base + scale * random.standard_normal(shape)).astype(np.float32)

    weights = {
        "conv1.w": draw(8, 3, 7, 7, scale=0.1),
        "conv1.b": draw(8),
        "slope": draw(8, 1, 1, scale=0.1, base=0.25),
        "bn.scale": draw(8, scale=0.1, base=1),
        "bn.shift": draw(8),
        "bn.mean": draw(8),
        "bn.var": np.abs(draw(8)) + 0.5,
        "conv2.w": draw(8, 4, 3, 3, scale=0.2),
        "fc.w": draw(width, 8 * 16 * 16, scale=0.05),
        "fc.b": draw(width),
        "half": np.float32(127.5).reshape(1, 1, 1, 1),
        "unit": np.float32(1 / 127.5).reshape(1, 1, 1, 1),
    }
    nodes = [
        helper.make_node(
            "Conv", ["y", "conv1.w", "conv1.b"], ["c1"], kernel_shape=[7, 7], strides=[7, 7], pads=[0] * 4
        ),
        helper.make_node("PRelu", ["c1", "slope"], ["p"]),
        helper.make_node("BatchNormalization", ["p", "bn.scale", "bn.shift", "bn.mean", "bn.var"], ["b"], epsilon=1e-5),
        helper.make_node("Conv", ["b", "conv2.w"], ["c2"], kernel_shape=[3, 3], pads=[0, 1, 2, 1], group=2),
        helper.make_node("Add", ["c2", "p"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["e"], transB=1),
    ]
    if own_normalisation:
        centre = [helper.make_node("Sub", ["x", "half"], ["z"]), helper.make_node("Mul", ["z", "unit"], ["y"])]
        nodes = [*centre, *nodes]
    else:
        nodes[0].input[0] = "x"
    _save(path, nodes, weights, {"x": ["batch", 3, 112, 112]}, {"e": ["batch", width]})


@pytest.fixture(scope="session")
def write_detector() -> Callable[..., None]:
    pytest.importorskip("onnx")
    return _write_bright_spot_detector


@pytest.fixture(scope="session")
def write_yunet() -> Callable[[Path], None]:
    pytest.importorskip("onnx")
    pytest.importorskip("cv2")
    return _write_yunet


@pytest.fixture(scope="session")
def write_recogniser() -> Callable[..., None]:
    pytest.importorskip("onnx")
    return _write_recogniser


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, write_detector, write_recogniser) -> Path:
    """A folder `buffalo_l` with a detector of bright spots and a random recogniser, under the published names."""
    folder = tmp_path_factory.mktemp("insightface") / "models" / "buffalo_l"
    write_detector(folder / "det_10g.onnx")
    write_recogniser(folder / "w600k_r50.onnx")
    return folder


@pytest.fixture
def spot() -> np.ndarray:
    """640 x 640 RGB, black with one bright cell at rows and columns 320 to 328 and a coloured ramp that is too dark."""
    photo = np.zeros((640, 640, 3), np.uint8)
    photo[..., 0] = np.arange(640)[None] % 64
    photo[..., 2] = np.arange(640)[:, None] % 32
    photo[320:328, 320:328] = 255
    return photo
