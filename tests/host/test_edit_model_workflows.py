"""The example workflows of edit models, node by node: only loaders and face analysis are replaced.

Their text encoder has 7 billion parameters in the one size that the host builds, so that no server can run them here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import comfyui
import pytest
import torch
from helpers.graph_run import run_graph
from helpers.references import FakeClip, FakeVae
from helpers.small_world import person
from torch import Tensor

from likeness.adapters.edit_models import sizes

NAMES = ["edit_model_portrait", "edit_model_two_people"]
SIDES = {"width": 160, "height": 96}


@pytest.fixture(scope="module")
def nodes(host_nodes, object_info) -> dict[str, Any]:
    """All classes, by what a graph calls them."""
    import asyncio

    from likeness.nodes import LikenessExtension

    ours = {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(LikenessExtension().get_node_list())}
    return {**host_nodes.NODE_CLASS_MAPPINGS, **ours}


@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    """A megapixel of references takes half a minute here."""
    monkeypatch.setattr(sizes, "MEGAPIXEL", 128**2)


class Run:
    """One run of a workflow at a small size, and everything that was seen in it."""

    def __init__(self, name: str, nodes: dict[str, Any], recipes: Any, **changes: Any) -> None:
        path = comfyui.REPOSITORY / "workflows" / "api" / f"{name}.api.json"
        self.prompt = json.loads(path.read_text(encoding="utf-8"))
        self.clip, self.vae = FakeClip(12, encoder="qwen25_7b"), FakeVae()
        self.people: list[Any] = []
        self.images: list[Tensor] = []
        for node in self.prompt.values():
            if node["class_type"] == "EmptySD3LatentImage":
                node["inputs"] |= SIDES
            if node["class_type"] == "KSampler":
                node["inputs"]["steps"] = 2
            if node["class_type"] == "LikenessApplyIdentity":
                node["inputs"] |= changes
        self.model = recipes.dit("QwenImage", recipes.QWEN_TINY)
        self.outputs = run_graph(
            self.prompt,
            nodes,
            {
                "UNETLoader": lambda inputs: (self.model,),
                "CLIPLoader": lambda inputs: (self.clip,),
                "VAELoader": lambda inputs: (self.vae,),
                "LoadImage": lambda inputs: (torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)),
                "LikenessLoadFaceAnalysis": lambda inputs: (None, ""),
                "LikenessFindFaces": lambda inputs: (None,) * 6,
                "LikenessIdentityFromPhotos": self.somebody,
                "PreviewImage": lambda inputs: (),
                "SaveImage": self.save,
            },
        )

    def somebody(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        self.people.append(replace(person(photos=2, seed=len(self.people)), name=inputs.get("name") or "person"))
        return (self.people[-1], "")

    def save(self, inputs: dict[str, Any]) -> tuple[()]:
        self.images.append(inputs["images"])
        return ()

    def report(self, kind: str) -> list[str]:
        return [
            self.outputs[number][{"LikenessApplyIdentity": 1, "LikenessIdentityPrompt": 2}[kind]]
            for number, node in self.prompt.items()
            if node["class_type"] == kind
        ]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_its_end_and_the_people_are_seen(name, nodes, recipes):
    run = Run(name, nodes, recipes)
    count = len(run.people)
    [images] = run.images
    assert images.shape == (1, 96, 160, 3) and images.isfinite().all()
    shown, same_without_text = run.clip.given
    assert shown[0].count("<|image_pad|>") == count and shown[0].startswith(same_without_text[0])
    assert [f"as reference {number}," in report for number, report in enumerate(run.report("LikenessApplyIdentity"), 1)]
    assert f"sees {count} images (numbered" in run.report("LikenessIdentityPrompt")[0]
    silent = Run(name, nodes, recipes, weight=0.001)
    assert not torch.allclose(silent.images[0], images, atol=1e-3)


def test_two_people_have_a_half_each(nodes, recipes):
    from likeness.nodes.edit_models import people_of

    run = Run("edit_model_two_people", nodes, recipes)
    [sampler] = [n["inputs"] for n in run.prompt.values() if n["class_type"] == "KSampler"]
    left, right = people_of(run.outputs[sampler["model"][0]][0])
    width = left.scope.mask.shape[-1]
    inside = left.scope.mask[..., 1 : width // 4]  # older hosts feather the first column as well
    assert inside.min() == 1 and left.scope.mask[..., -width // 4 :].max() == 0
    torch.testing.assert_close(left.scope.mask + right.scope.mask, torch.ones_like(left.scope.mask))
    heads = [who.heads[0].float() / 255 for who in run.people]
    for term, head in zip((left, right), heads, strict=True):
        torch.testing.assert_close(term.photos.photos[0].image[0], head)
