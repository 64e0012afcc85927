"""Host modules are rebuilt from what makes them one: nothing is shared, and what is not plain data stays behind."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

HERE = Path(__file__).parent
AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
WAN = {
    "dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False],
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def copying(host_nodes):
    from likeness.nodes import module_copy

    return module_copy


class Owner:
    """Frees something outside of Python when it dies."""

    def __del__(self) -> None:
        pass


@dataclass
class Config:
    width: int
    layers: list[Any]


class Slotted:
    __slots__ = ("layer",)


Pair = namedtuple("Pair", "left right")


if importlib.util.find_spec("comfy_aimdo"):  # DynamicVRAM, which newer hosts come with

    def test_a_vae_that_dynamic_vram_manages_is_copied_without_what_it_owns(host_path):
        command = [sys.executable, str(HERE / "dynamic_vram.py"), str(host_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0 and "alive at the end" in done.stdout, done.stderr[-3000:]


def _kl() -> Any:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4)


def _taesd() -> Any:
    from comfy.taesd.taesd import TAESD

    return TAESD()


def _wan() -> Any:
    from comfy.ldm.wan.vae import WanVAE

    return WanVAE(**WAN)


@pytest.mark.parametrize("make", [_taesd, _kl, _wan])
def test_a_vae_of_the_host_gives_the_same_latents_pictures_and_gradients(copying, recipes, make):
    plain = make()
    recipes.init_randomly(plain, 0)
    with torch.inference_mode():
        theirs = make()
        theirs.load_state_dict(plain.state_dict())
        twin = copying.normal_copy(theirs)
    assert type(twin) is type(theirs) and not twin.training
    assert [type(part) for part in twin.modules()] == [type(part) for part in theirs.modules()]
    assert not set(map(id, twin.modules())) & set(map(id, theirs.modules()))
    mine, own = ({value.data_ptr() for value in part.state_dict().values()} for part in (twin, theirs))
    assert not mine & own
    assert not any(value.requires_grad or value.is_inference() for value in twin.state_dict(keep_vars=True).values())
    pictures = torch.rand(1, 3, *([1] if make is _wan else []), 32, 32, requires_grad=True)
    found = []
    for vae in (plain.eval(), twin):
        latents = vae.encode(pictures)
        decoded = vae.decode(latents)
        [gradient] = torch.autograd.grad(decoded.square().mean() + latents.sum(), pictures)
        found.append((latents, decoded, gradient))
    for expected, ours in zip(*found, strict=True):
        assert torch.equal(expected, ours)
    assert found[0][2].abs().sum() > 0


class Tangle(nn.Module):
    """Everything that code keeps on a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight  # tied
        self.again = self.first  # one child under two names
        scale = torch.full((4,), 2.0)
        self.register_buffer("scale", scale, persistent=False)
        self.beside_scale = scale
        self.second.register_buffer("scale", scale)
        self.none: Any = None
        self.shift = torch.arange(4.0)  # neither parameter nor buffer
        self.beside = [nn.Linear(4, 4), self.first]  # not registered
        self.by_name = {"norm": nn.LayerNorm(4), "shift": self.shift}
        self.config = Config(4, [self.second])
        self.space = SimpleNamespace(layer=self.first)
        self.pair = Pair(self.first, (self.second, {self.shift}))
        self.slotted = Slotted()
        self.slotted.layer = self.first
        self.ordered = OrderedDict(a=self.first)
        self.default = defaultdict(list, {"a": [self.shift]})
        self.bound = self.first.forward
        self.partial = functools.partial(self.run, self.second)
        self.closure = lambda x: self.first(x) + self.shift
        self.plain_function = nn.functional.silu
        self.up: Any = weakref.ref(self.first)
        self.numbers = torch.tensor([1, 2]).numpy()
        self.kind, self.size = torch.float32, torch.Size([1, 2])
        self.loop: list[Any] = [self.shift]
        self.loop.append(self.loop)
        self.register_forward_pre_hook(self.look)
        self.seen = 0

    def run(self, layer, x):
        return layer(x) * self.scale

    def look(self, module, inputs):
        self.seen += 1

    def forward(self, x):
        y = self.bound(x) + self.partial(x) + self.closure(x) + self.beside[0](x) + self.by_name["norm"](x)
        layers = [self.config.layers[0], self.space.layer, self.pair.left, self.pair.right[0], self.slotted.layer]
        return sum((layer(y) for layer in layers), self.up()(y)) * float(self.numbers[1])


def _everything(value: Any, found: dict[int, Any]) -> dict[int, Any]:
    """All modules, tensors and changeable things that a value leads to."""
    if isinstance(value, (nn.Module, torch.Tensor, dict, list, set, Config, SimpleNamespace, Slotted)):
        if id(value) in found:
            return found
        found[id(value)] = value
    parts = getattr(value, "__dict__", {}) if isinstance(value, (nn.Module, Config, SimpleNamespace)) else {}
    thing: Any = value
    for part in (
        *parts.values(),
        *(value.values() if isinstance(value, dict) else ()),
        *(value if isinstance(value, (list, tuple, set)) else ()),
        *((thing.layer,) if isinstance(thing, Slotted) else ()),
        *((thing.__self__,) if isinstance(thing, MethodType) else ()),
        *((thing.func, thing.args) if isinstance(thing, functools.partial) else ()),
        *(cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()),
        *((thing(),) if isinstance(thing, weakref.ref) else ()),
    ):
        _everything(part, found)
    return found


def test_what_code_keeps_on_a_module_is_copied_with_its_ties(copying):
    with torch.inference_mode():
        own = Tangle()
    x = torch.randn(2, 4, requires_grad=True)
    twin = copying.normal_copy(own)
    shared = {
        id: value
        for id, value in _everything(twin, {}).items()
        if id in _everything(own, {}) and not (isinstance(value, dict) and not value)
    }
    assert not shared
    assert twin.second.weight is twin.first.weight and twin.again is twin.first is twin.beside[1]
    assert twin.loop[1] is twin.loop and twin.loop[0] is twin.shift is twin.by_name["shift"]
    assert twin.second.scale is twin.scale is twin.beside_scale
    assert twin.plain_function is nn.functional.silu and twin.up() is twin.first
    with torch.inference_mode():
        expected = own(x)
    found = twin(x)
    assert torch.equal(found, expected) and own.seen == twin.seen == 1
    found.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 4, 2),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_modules_with_machinery_of_their_own_work(copying, make):
    own = make().eval()
    twin = copying.normal_copy(own).float()
    x = torch.randn(3, 1, 4)
    inputs = (x, x, x) if isinstance(own, nn.MultiheadAttention) else (x,)
    expected, found = own(*inputs), twin(*inputs)
    flat = [value if isinstance(value, torch.Tensor) else value[0] for value in (expected, found)]
    assert torch.equal(*flat)
    assert not set(map(id, own.parameters())) & set(map(id, twin.parameters()))


def _pointer() -> Any:
    return ctypes.cast(ctypes.create_string_buffer(8), ctypes.c_void_p)


def _held_by_a_function() -> Any:
    owner, layer = Owner(), nn.Linear(1, 1)
    return lambda: (owner, layer)


@pytest.mark.parametrize(
    "owned", [Owner, _pointer, threading.Lock, lambda: (x for x in ""), lambda: sys.stderr.buffer, _held_by_a_function]
)
@pytest.mark.parametrize(
    "hidden",
    [
        lambda x: x,
        lambda x: (x, 4096, 512),
        lambda x: {"pins": {"weights": [x]}},
        lambda x: SimpleNamespace(a=Pair(1, x)),
        lambda x: weakref.ref(Owner) and functools.partial(print, x),
    ],
)
def test_what_owns_memory_is_neither_copied_nor_shared(copying, owned, hidden):
    own: Any = nn.Sequential(nn.Linear(2, 2))
    own[0].hung_there = hidden(owned())
    own[0].beside = [1, 2]
    twin = copying.normal_copy(own)
    assert not hasattr(twin[0], "hung_there") and twin[0].beside == [1, 2] and hasattr(own[0], "hung_there")
    assert torch.equal(twin[0].weight, own[0].weight)


def test_a_tensor_on_memory_of_a_card_that_is_not_torchs_stays_behind(copying):
    class OnCard(torch.Tensor):
        device = torch.device("cuda", 0)

    class Foreign(OnCard):
        def untyped_storage(self):
            return SimpleNamespace(resizable=lambda: False)

    for kind in (OnCard, Foreign):
        own: Any = nn.Linear(2, 2)
        own.cached = [torch.zeros(2).as_subclass(kind)]
        assert not hasattr(copying.normal_copy(own), "cached")


def test_lazy_and_quantised_weights_become_normal_ones(copying):
    own: Any = nn.Linear(2, 2)
    own.weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    assert torch.equal(copying.normal_copy(own).weight, torch.zeros(2, 2))
    if importlib.util.find_spec("comfy_kitchen") is None:
        return
    from comfy.quant_ops import QuantizedTensor

    weight = torch.randn(32, 32)
    quantised = QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale="recalculate")
    own.weight = nn.Parameter(quantised, requires_grad=False)
    found = copying.normal_copy(own).weight
    assert type(found) is nn.Parameter and torch.equal(found, quantised.dequantize())


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Config, st.integers(), st.lists(inner, max_size=2)),
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN, st.lists(st.sampled_from(["list", "dict", "tuple", "config", "partial"]), max_size=4))
def test_plain_data_is_copied_equal_however_deep_and_owners_found_however_deep(copying, data, around):
    def wrap(value: Any) -> Any:
        for kind in around:
            value = {
                "list": [value],
                "dict": {"a": value},
                "tuple": (1, value),
                "config": Config(1, [value]),
                "partial": functools.partial(max, value),
            }[kind]
        return value

    own: Any = nn.Linear(1, 1)
    own.data, own.hung_there = [data], wrap(Owner())
    own.also = wrap(data)
    twin = copying.normal_copy(own)
    assert twin.data == [data] and twin.data is not own.data and not hasattr(twin, "hung_there")
    assert repr(twin.also) == repr(own.also)
