"""Every node's edge: images and masks come as float32 on the CPU, and full memory is said in a sentence."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError

PICTURES = ("IMAGE", "MASK")


@pytest.fixture(scope="module")
def all_nodes(host_nodes) -> list[Any]:
    from likeness.nodes import LikenessExtension

    return asyncio.run(LikenessExtension().get_node_list())


def _probe(node: Any, seen: dict[str, Any], error: Exception | None = None) -> Any:
    """The node with another inside."""

    class Probe(node):
        @classmethod
        def execute(cls, **inputs):
            if error is not None:
                raise error
            seen.update(inputs)

    return Probe


def test_pictures_and_masks_of_every_node_are_float32_whatever_the_host_keeps(all_nodes):
    sockets = {
        node: [widget.id for widget in node.GET_SCHEMA().inputs if widget.get_io_type() in PICTURES]
        for node in all_nodes
    }
    takes = {node: names for node, names in sockets.items() if names}
    assert len(takes) > 6

    @settings(max_examples=30, deadline=None)
    @given(
        st.sampled_from(list(takes)),
        st.sampled_from([torch.float16, torch.bfloat16, torch.float64, torch.float32]),
        st.integers(1, 3),
    )
    def check(node, kept_in, count):
        seen: dict[str, Any] = {}
        shown = torch.rand(count, 8, 8, 3)
        inputs = {name: shown.to(kept_in) for name in takes[node]}
        _probe(node, seen).EXECUTE_NORMALIZED(**inputs, number=3, words="a", linked=None)
        assert seen.pop("number") == 3 and seen.pop("words") == "a" and seen.pop("linked") is None
        assert set(seen) == set(takes[node])
        for value in seen.values():
            assert value.dtype is torch.float32 and torch.equal(value, shown.to(kept_in).float())
        if kept_in is torch.float32:
            assert all(seen[name] is inputs[name] for name in seen)

    check()


def test_half_pictures_give_what_their_float32_gives(all_nodes):
    by_id = {node.GET_SCHEMA().node_id.removeprefix("Likeness"): node for node in all_nodes}
    half = torch.rand(2, 72, 96, 3).half()
    cases = {
        "PrepareReference": {"sharpening": 0.3, "crop": "center"},
        "PortraitDataset": {"kind": "style", "trigger_word": "sks", "resolution": 64},
    }
    for name, inputs in cases.items():
        widgets = by_id[name].GET_SCHEMA().inputs
        defaults = {widget.id: widget.default for widget in widgets if getattr(widget, "default", None) is not None}
        ours, wanted = (
            by_id[name].execute(**{**defaults, **inputs, "image": kept}).result for kept in (half, half.float())
        )
        pictures = [pair for pair in zip(ours, wanted, strict=True) if isinstance(pair[0], torch.Tensor)]
        assert pictures and all(torch.equal(*pair) for pair in pictures), name


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_full_memory_is_said_by_every_node_and_the_host_lets_go_of_its_models(all_nodes, monkeypatch, error):
    import comfy.model_management as host

    freed = []
    monkeypatch.setattr(host, "unload_all_models", lambda: freed.append(True))
    for node in all_nodes:
        with pytest.raises(LikenessError, match=f"Memory ran out while '{node.GET_SCHEMA().display_name}'"):
            _probe(node, {}, error).execute()
    assert len(freed) == len(all_nodes) > 20


def test_other_errors_and_interruptions_pass(all_nodes):
    import comfy.model_management as host

    for error in (RuntimeError("shapes"), LikenessError("a sentence"), host.InterruptProcessingException()):
        with pytest.raises(type(error)) as found:
            _probe(all_nodes[0], {}, error).execute()
        assert found.value is error


def test_the_host_may_clone_and_lock_every_node_as_it_does_for_each_run(all_nodes):
    from comfy_api.internal import lock_class, shallow_clone_class

    for node in all_nodes:
        clone = lock_class(shallow_clone_class(node))
        assert clone.execute.__func__ is node.execute.__func__


def test_every_node_is_checked_and_has_its_edge_once(all_nodes):
    for node in all_nodes:
        wrappers = []
        function = node.execute.__func__
        while hasattr(function, "__wrapped__"):
            wrappers.append(function.__code__.co_name)
            function = function.__wrapped__
        assert wrappers == ["execute", "edge"], node
