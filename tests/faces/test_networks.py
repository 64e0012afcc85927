"""Torch networks: recognisers that can be differentiated, RetinaFace, and the parsers of faces."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces import (
    FrozenRecogniser,
    Part,
    differentiable_crop,
    load_facexlib,
    load_parser,
    load_recogniser_module,
    parse_face,
    part_mask,
)
from likeness.faces.align import FFHQ_512
from likeness.faces.ir_se50 import Bottleneck, IrSe
from likeness.faces.iresnet import IResNet, iresnet
from likeness.faces.onnx_file import read_graph
from likeness.faces.parsing import BISENET_ORDER, EARS, FACE, HEAD, PARSENET_ORDER, BiSeNet, FaceParser, ParseNet
from likeness.faces.retinaface import MobileNet, RetinaFace, retinaface

Network = TypeVar("Network", bound=torch.nn.Module)
POINTS = torch.tensor([(60.0, 70.0), (95.0, 66.0), (78.0, 90.0), (64.0, 108.0), (96.0, 105.0)])


def shaken(network: Network, seed: int = 0) -> Network:
    """The network with random statistics, so that a forgotten evaluation mode shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if "running_var" in name else noise * 0.1 + ("weight" in name) * 0.02)
    return network.eval()


def tiny_iresnet() -> IResNet:
    return shaken(IResNet(stem=4, widths=[4, 8, 8, 12], blocks=[1, 2, 1, 1], cells=49, dim=16))


# --- recognisers


def test_an_onnx_file_becomes_a_module_that_equals_onnxruntime(tmp_path, write_recogniser):
    onnxruntime = pytest.importorskip("onnxruntime")
    write_recogniser(tmp_path / "r.onnx")
    x = torch.rand(3, 3, 112, 112) * 2 - 1
    expected = onnxruntime.InferenceSession(str(tmp_path / "r.onnx")).run(None, {"x": x.numpy()})[0]
    module = load_recogniser_module(tmp_path / "r.onnx")
    torch.testing.assert_close(module(x), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    write_recogniser(tmp_path / "own.onnx", own_normalisation=True)
    torch.testing.assert_close(load_recogniser_module(tmp_path / "own.onnx")(x), module(x), rtol=1e-4, atol=1e-4)


def test_our_reader_of_onnx_files_agrees_with_the_onnx_package(tmp_path, write_recogniser):
    onnx = pytest.importorskip("onnx")
    write_recogniser(tmp_path / "r.onnx")
    graph, theirs = read_graph(tmp_path / "r.onnx"), onnx.load(str(tmp_path / "r.onnx")).graph
    assert [(n.kind, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    for tensor in theirs.initializer:
        assert np.array_equal(graph.initializers[tensor.name], onnx.numpy_helper.to_array(tensor))
    for ours, node in zip(graph.nodes, theirs.node, strict=True):
        for attribute in node.attribute:
            assert ours.attributes[attribute.name] == pytest.approx(onnx.helper.get_attribute_value(attribute))


def test_an_operation_that_is_not_an_iresnets_is_named(tmp_path, write_detector):
    write_detector(tmp_path / "d.onnx")
    with pytest.raises(LikenessError, match="Sigmoid"):
        load_recogniser_module(tmp_path / "d.onnx")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "module prefix", "state_dict"])
def test_iresnet_weights_load_from_every_kind_of_file(tmp_path, kind):
    from safetensors.torch import save_file

    network = tiny_iresnet()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    path = tmp_path / ("r.safetensors" if kind == "safetensors" else "r.pth")
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "state_dict":
        torch.save({"state_dict": weights, "epoch": 3}, path)
    else:
        torch.save(
            {("module." if kind == "module prefix" else "") + key: value for key, value in weights.items()}, path
        )
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(load_recogniser_module(path)(x), network(x))


@pytest.fixture
def recogniser() -> FrozenRecogniser:
    return FrozenRecogniser(iresnet(tiny_iresnet().state_dict()), "tiny")


def test_gradients_reach_the_picture_and_no_parameter(recogniser):
    picture = torch.rand(1, 3, 150, 131, requires_grad=True)
    recogniser(differentiable_crop(picture * 2 - 1, POINTS[None])).square().sum().backward()
    assert picture.grad is not None and picture.grad[0, :, 85, 78].abs().min() > 0
    assert all(not p.requires_grad and p.grad is None for p in recogniser.parameters())


def test_a_recogniser_stays_in_evaluation_mode_and_float32(recogniser):
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    expected = recogniser(x)
    torch.nn.Sequential(recogniser).train()
    assert not any(module.training for module in recogniser.modules())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = recogniser(x)
    assert under_autocast.dtype == torch.float32 and torch.equal(under_autocast, expected)
    assert recogniser(x.half()).dtype == torch.float32


def test_ir_se50_equals_facexlib():
    arch = pytest.importorskip("facexlib.recognition.arcface_arch")
    from likeness.faces.ir_se50 import ir_se

    reference = shaken(arch.Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))
    ours = ir_se(reference.state_dict())
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-3, atol=1e-4)


def test_other_weights_are_no_recogniser(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(LikenessError, match=r"x\.pth is not a face recogniser"):
        load_recogniser_module(tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(b"nothing")
    with pytest.raises(LikenessError, match=r"'y\.pth' .* not a weight file"):
        load_recogniser_module(tmp_path / "y.pth")
    for missing in ("z.pth", "z.onnx"):
        with pytest.raises(LikenessError, match="is missing"):
            load_recogniser_module(tmp_path / missing)


def test_weights_with_a_key_too_few_are_refused():
    weights = tiny_iresnet().state_dict()
    del weights["layer2.1.bn2.weight"]
    with pytest.raises(LikenessError, match=r"1 missing \['layer2\.1\.bn2\.weight'\]"):
        iresnet(weights)


# --- RetinaFace


def test_retinaface_r50_has_facexlibs_layout_and_output():
    theirs = pytest.importorskip("facexlib.detection.retinaface")
    pytest.importorskip("torchvision")
    reference: torch.nn.Module = shaken(theirs.RetinaFace("resnet50", device=torch.device("cpu")))
    ours = retinaface(reference.state_dict())
    x = torch.randn(1, 3, 70, 90) * 40
    for left, right in zip(ours(x), reference(x), strict=True):
        assert torch.isfinite(right).all()
        scale = max(right.abs().max().item(), 1e-6)
        torch.testing.assert_close(left / scale, right / scale, rtol=1e-3, atol=1e-4)


def test_facexlib_weights_make_an_analysis_without_onnxruntime(tmp_path, astronaut):
    widths = [[8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 8, 8], [8, 8]]
    torch.save(shaken(RetinaFace(MobileNet(widths), [8, 8, 8], 16)).state_dict(), tmp_path / "d.pth")
    blocks = [Bottleneck(4, 4, 2, 2), Bottleneck(4, 8, 2, 2), Bottleneck(8, 8, 1, 2), Bottleneck(8, 16, 2, 2)]
    network = shaken(IrSe(blocks, stem=4, width=16, flat=16 * 14 * 14, dim=24))
    torch.save(network.state_dict(), tmp_path / "r.pth")
    analysis = load_facexlib(tmp_path / "d.pth", tmp_path / "r.pth")
    assert analysis.recogniser is not None and analysis.recogniser.name == "ir_se50"
    embedding = analysis.recogniser.embed(astronaut, POINTS.numpy() + 100)
    assert embedding.shape == (24,) and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    candidates = analysis.detector.detect(astronaut, 128)
    assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)
    for candidate in candidates:
        assert candidate.box.shape == (4,) and candidate.keypoints is not None and candidate.keypoints.shape == (5, 2)
    assert load_facexlib(tmp_path / "d.pth").recogniser is None


# --- parsing


class Painted(torch.nn.Module):
    """Reads the part off the red channel: 10 times its number in `ORDER`."""

    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, order):
        super().__init__()
        self.ORDER = order
        self.register_buffer("steps", torch.arange(19.0))
        self.steps: torch.Tensor

    def forward(self, x):
        numbers = x[:, :1] * 255 / 10
        return (-(numbers - self.steps.reshape(1, 19, 1, 1)).abs(),)


@pytest.mark.parametrize("order", [BISENET_ORDER, PARSENET_ORDER])
def test_masks_by_name_show_the_same_region_whatever_the_network_numbers(order):
    photo = np.zeros((600, 700, 3), np.uint8)
    points = FFHQ_512 * 0.8 + np.array([100, 60])
    photo[150:250, 200:400] = 10 * order.index(Part.SKIN)
    photo[180:200, 250:300] = 10 * order.index(Part.NOSE)
    photo[300:350, 200:300] = 10 * order.index(Part.HAIR)
    labels = parse_face(FaceParser(Painted(order), "painted", ""), photo, points)  # pyright: ignore[reportArgumentType]
    assert labels.shape == (600, 700) and labels.dtype == np.uint8
    expected = np.zeros((600, 700), bool)
    expected[150:250, 200:400] = True
    # Only the seams, where the crop mixes two parts, may differ.
    assert (part_mask(labels, FACE) ^ expected).sum() < 0.03 * expected.sum()
    assert part_mask(labels, [Part.HAIR])[302:348, 202:298].all()
    assert not part_mask(labels, FACE)[305:345, 205:295].any()
    assert part_mask(labels, [Part.NOSE])[182:198, 252:298].all()


def test_face_and_head_are_the_regions_of_the_reference():
    """Numbers of the two networks' classes for face skin, as their papers' code orders them."""
    assert {BISENET_ORDER.index(part) for part in FACE} == {*range(1, 7), *range(10, 14)}
    assert {PARSENET_ORDER.index(part) for part in FACE} == {*range(1, 8), *range(10, 13)}
    assert PARSENET_ORDER.index(Part.HAIR) == 13 and BISENET_ORDER.index(Part.HAIR) == 17
    assert PARSENET_ORDER.index(Part.NECK) == 17 and BISENET_ORDER.index(Part.NECK) == 14
    assert PARSENET_ORDER.index(Part.CLOTH) == 18 and BISENET_ORDER.index(Part.CLOTH) == 16
    assert sorted(PARSENET_ORDER) == sorted(BISENET_ORDER) and FACE | EARS <= HEAD


def test_both_parsers_load_from_files_and_parse(tmp_path, astronaut, mtcnn):
    torch.save(shaken(BiSeNet(4, 19)).state_dict(), tmp_path / "parsing_bisenet.pth")
    parsenet = shaken(ParseNet(8, [(8, 8), (8, 16)], 2, [(16, 8), (8, 8)], 19))
    torch.save(parsenet.state_dict(), tmp_path / "parsing_parsenet.pth")
    points = mtcnn.find(astronaut)[0].keypoints
    for name in ("parsing_bisenet", "parsing_parsenet"):
        parser = load_parser(tmp_path / f"{name}.pth")
        assert parser.name == name and parser.licence
        assert parse_face(parser, astronaut, points).shape == (512, 512)


def test_files_that_do_not_parse_19_parts_are_refused(tmp_path):
    torch.save({"out_mask_conv.conv2d.weight": torch.zeros(19, 8, 3, 3)}, tmp_path / "broken.pth")
    with pytest.raises(LikenessError, match="do not fit a ParseNet"):
        load_parser(tmp_path / "broken.pth")
    torch.save(BiSeNet(4, 11).state_dict(), tmp_path / "eleven.pth")
    with pytest.raises(LikenessError, match="has 11 classes, not 19"):
        load_parser(tmp_path / "eleven.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(LikenessError, match="not a face parser"):
        load_parser(tmp_path / "x.pth")


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (50, 70)])
def test_bisenet_takes_any_size(size):
    main, *_ = shaken(BiSeNet(4, 19))(torch.rand(2, 3, *size))
    assert main.shape == (2, 19, *size)
