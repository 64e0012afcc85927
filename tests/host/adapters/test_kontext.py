"""References on models that every supported host knows: FLUX.1 Kontext and Qwen-Image-Edit 2509."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.references import FakeVae
from helpers.small_world import person, same, sentence

from likeness.adapters.edit_models import sizes


@pytest.fixture
def run(monkeypatch) -> Any:
    """Nodes with the defaults of their widgets; references are small."""
    from likeness.nodes import adapters, edit_models

    monkeypatch.setattr(sizes, "MEGAPIXEL", 128**2)
    classes = {cls.GET_SCHEMA().node_id: cls for cls in (*adapters.NODES, *edit_models.NODES)}

    def run(node: str, **inputs: Any) -> Any:
        cls = classes[node]
        defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return cls.execute(**{**defaults, **inputs}).result

    return run


def bases(recipes: Any) -> dict[str, Any]:
    """title -> (MODEL, VAE, prompt, shape of the latents)"""
    flux = recipes.conditioning(48, pooled=32, tokens=6, seed=1, guidance=2.5)
    qwen = recipes.conditioning(12, tokens=6, seed=1)
    return {
        "FLUX.1 Kontext": (recipes.tiny_flux(), FakeVae(16, frames=False), flux, (1, 16, 12, 8)),
        "Qwen-Image-Edit 2509": (recipes.dit("QwenImage", recipes.QWEN_TINY), FakeVae(), qwen, (1, 16, 1, 12, 8)),
    }


@pytest.mark.parametrize("title", ["FLUX.1 Kontext", "Qwen-Image-Edit 2509"])
def test_a_person_is_seen_weighed_and_left_out(title, run, recipes):
    model, vae, text, shape = bases(recipes)[title]
    [adapter] = run("LikenessReferenceAdapter", vae=vae, scheme=title, most_photos=1)
    half = torch.zeros(1, 12, 8)
    half[:, :6] = 1

    def paint(**inputs: Any) -> Any:
        applied, _ = run("LikenessApplyIdentity", model=model, adapter=adapter, identity=person(), **inputs)
        return recipes.sample(applied, text, text, shape=shape, steps=2, cfg=1.0)

    alone = recipes.sample(model, text, text, shape=shape, steps=2, cfg=1.0)
    assert torch.equal(paint(weight=0.0), alone)
    made = [paint(), paint(weight=3.0), paint(attn_mask=half)]
    assert all(one.isfinite().all() and not same(one, alone) for one in made)
    assert not same(made[0], made[1]) and not same(made[0], made[2])


def test_a_model_of_another_family_is_refused_by_name(run, recipes):
    _, vae, *_ = bases(recipes)["FLUX.1 Kontext"]
    [adapter] = run("LikenessReferenceAdapter", vae=FakeVae(), scheme="Krea 2 ReID")
    apply = {"adapter": adapter, "identity": person()}
    for model in (recipes.tiny_flux(), recipes.tiny_sd15()):
        text = sentence(run, "LikenessApplyIdentity", model=model, **apply)
        assert "was made for Krea 2" in text and "choose an adapter" in text
    [adapter] = run("LikenessReferenceAdapter", vae=vae)
    text = sentence(run, "LikenessApplyIdentity", model=recipes.tiny_sdxl(), adapter=adapter, identity=person())
    assert "does not attend to reference images" in text
