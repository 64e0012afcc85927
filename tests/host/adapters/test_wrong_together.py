"""Models, adapters, encoders and people that do not fit each other: the sentence a user reads."""

from __future__ import annotations

import pytest
import torch
from helpers.small_world import CLIP, official, person, pictures, same, sentence


def test_an_sdxl_adapter_on_another_model_is_named(world, recipes):
    official.write(world.folder / "ipadapter" / "sdxl.safetensors", world.groups("base", official.SDXL))
    sdxl = world.run("LikenessLoadIdentityAdapter", adapter_file="sdxl.safetensors")
    for model in (world.model, recipes.unet(recipes.SD15_SITES)):
        text = sentence(world.apply, sdxl, model=model)
        assert "'sdxl.safetensors' was made for SDXL (70 cross-attention layers" in text
        assert "MODEL is SD15" in text
    text = sentence(world.apply, sdxl, model=recipes.tiny_flux())
    assert "was made for" in text and "the connected MODEL is Flux: choose" in text


def test_an_adapter_without_attention_layers_fits_its_own_family_alone(world, recipes):
    """Of a system that changes weights, or blocks of a DiT: nothing of its shapes can tell."""
    from likeness.adapters.effects import WeightDelta
    from likeness.adapters.system import Needs
    from likeness.injection.comfy import ManagedAdapter
    from likeness.weights import families

    class Blocks(torch.nn.Linear):
        name, title, site_shapes, needs = "blocks.bin", "Blocks", {}, Needs(families.FLUX)
        effects, notes = (lambda self, request: (WeightDelta("blocks", "1", {}),)), (lambda self, request: [])

    adapter = ManagedAdapter(Blocks(1, 1))
    text = sentence(world.apply, adapter)
    assert "'blocks.bin' was made for FLUX, but the connected MODEL is SD15" in text
    world.apply(adapter, model=recipes.tiny_flux())


def test_a_pruned_model_is_refused_in_words(world, recipes):
    pruned = recipes.tiny_sd15(transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1])
    text = sentence(world.apply, world.adapter("faceid"), person(), model=pruned)
    assert "7 cross-attention layers" in text and "4 cross-attention layers" in text


def test_what_is_missing_is_asked_for(world):
    assert "Identity from Photos or Load Identity" in sentence(world.apply, world.adapter("faceid"))
    assert "connect ViT-H/14 to clip_vision" in sentence(world.apply, world.adapter("plus"), person())
    assert "reference image" in sentence(world.apply, world.adapter("base"), clip_vision=world.clip_vision)
    assert "has none" in sentence(world.apply, world.adapter("faceid"), person(recogniser=None))


def test_another_recogniser_is_refused_unless_allowed(world):
    stranger = person(recogniser="antelopev2")
    assert "made with antelopev2" in sentence(world.apply, world.adapter("faceid"), stranger)
    model, _ = world.apply(world.adapter("faceid"), stranger, options=world.options(any_recogniser=True))
    assert world.sample(model).isfinite().all()


def test_the_wrong_encoder_is_named(world):
    small = world.clip({**CLIP, "hidden_size": 768, "projection_dim": 512})
    for kind in ("plus", "base"):
        text = sentence(world.apply, world.adapter(kind), person(), clip_vision=small)
        assert "needs ViT-H/14" in text


@pytest.mark.parametrize("channels", [1, 4], ids=["grey", "with alpha"])
def test_grey_references_and_ones_with_alpha_work(world, channels):
    options = world.options(image=pictures(channels=channels))
    model, _ = world.apply(world.adapter("plus"), clip_vision=world.clip_vision, options=options)
    assert world.sample(model).isfinite().all()


class _Recogniser:
    name = "buffalo_l"

    def embed(self, image_rgb, keypoints):
        generator = torch.Generator().manual_seed(int(image_rgb.sum()))
        return torch.randn(512, generator=generator).numpy()


def test_a_person_made_for_another_method_is_seen_again_where_its_pack_is_installed(world, monkeypatch):
    """Swapping the method must not mean making the identity again: the file carries the crops."""
    from likeness import faces, models_download
    from likeness.nodes.adapters import embedded_by

    analysis = faces.FaceAnalysis("buffalo_l", detector=None, recogniser=_Recogniser())
    monkeypatch.setattr(models_download, "list_insightface_packs", lambda: ["buffalo_l"])
    monkeypatch.setattr(models_download, "find_insightface_pack", lambda name: name)
    monkeypatch.setattr(faces, "load_pack", lambda folder: analysis)
    stranger = person(recogniser="antelopev2")
    model, report = world.apply(world.adapter("faceid"), stranger)
    seen = embedded_by(stranger, "buffalo_l")
    assert seen.recognisers == ("antelopev2", "buffalo_l")
    assert embedded_by(stranger, "buffalo_l") is seen, "crops are embedded once"
    expected, _ = world.apply(world.adapter("faceid"), seen.as_seen_by("buffalo_l"))
    assert same(world.sample(model), world.sample(expected))
    assert "'Ada'" in report
