"""PuLID in a MODEL: all 70 sites of SDXL, its options, and what is said when something is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import pulid as files
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def load(world) -> Any:
    """load(version) -> the adapter of a file in models/pulid that fits the world's MODEL."""

    def make(version: str = "v1", shapes: Any = None) -> Any:
        name = f"{version} {len(shapes or world.shapes)}.safetensors"
        save_file(files.adapter(shapes or world.shapes, version=version), world.folder / "pulid" / name)
        return world.run("LikenessLoadIdentityAdapter", adapter_file=f"pulid/{name}")

    return make


def options(**inputs: Any) -> Any:
    from likeness.nodes.pulid import PuLIDOptionsNode

    return PuLIDOptionsNode.execute(**inputs).result[0]


@pytest.mark.parametrize(("version", "tokens"), [("v1", 23), ("v1.1", 52)])
def test_both_versions_are_applied_at_every_site(world, load, version, tokens):
    model, report = world.apply(load(version), person())
    assert (
        f"PuLID {version}" in report and f"{tokens} tokens at {len(world.sites)} of {len(world.sites)} sites" in report
    )
    assert not same(world.sample(model), world.sample(world.model))


def test_all_70_sites_of_sdxl_attend_to_the_person(world, load, recipes, monkeypatch):
    from likeness.injection.comfy import sites_of, unet

    sdxl = recipes.unet(recipes.SDXL_SITES)
    sites, seen = sites_of(sdxl), []
    add = unet.add_identity
    monkeypatch.setattr(unet, "add_identity", lambda out, q, terms: seen.append(len(terms)) or add(out, q, terms))
    model, report = world.apply(load(shapes=[(s.width, s.context_dim) for s in sites]), person(), model=sdxl)
    text = [recipes.conditioning(128, pooled=recipes.SDXL_POOLED, seed=s) for s in (1, 2)]
    recipes.sample(model, *text, steps=1, shape=(1, 4, 8, 8))
    assert seen == [1] * 70 and "70 of 70 sites" in report


def test_every_method_paints_another_picture(world, load):
    adapter = load()
    methods = ["fidelity", "style", "neutral", "v1.1"]
    pictures = [world.sample(world.apply(adapter, person(), options=options(method=m))[0]) for m in methods]
    for i, one in enumerate(pictures):
        assert not any(same(one, other) for other in pictures[:i])
    untouched = world.sample(world.apply(adapter, person())[0])
    assert same(untouched, pictures[0]) and same(
        untouched, world.sample(world.apply(adapter, person(), options=options())[0])
    )
    custom = options(method="custom", num_zero=16, ortho="ortho")
    assert same(world.sample(world.apply(adapter, person(), options=custom)[0]), pictures[1])


def test_two_people_in_their_halves(world, load):
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    model, _ = world.apply(load(), person(seed=1), attn_mask=left)
    both, _ = world.apply(load(), person(seed=2), model=model, attn_mask=1 - left)
    assert not same(world.sample(both), world.sample(model))


BAD = [
    {"method": "x"}, {"ortho": "x"}, {"photos": "x"}, {"background": "x"},
    {"num_zero": -1}, {"num_zero": 81}, {"num_zero": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_options_that_do_not_exist(bad):
    (value,) = bad.values()
    assert repr(value) in sentence(options, **bad)


def test_without_the_image_encoder_it_says_how_to_get_it(world, load, monkeypatch, tmp_path):
    import folder_paths

    adapter = load()
    for kind in ("clip_vision", "text_encoders"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path)], {".pt"}))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = sentence(world.apply, adapter, person())
    assert "EVA02_CLIP_L_336_psz14_s6B.pt" in text and "eva02-clip-l-336" in text


def test_without_a_parsing_network_it_says_how_to_get_it_and_needs_none_for_the_photo_as_it_is(
    world, load, monkeypatch, tmp_path
):
    import folder_paths

    adapter = load()
    for kind in ("facexlib", "facedetection", "facerestore_models"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path)], {".pth"}))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    assert "parsing_bisenet" in sentence(world.apply, adapter, person())
    world.apply(adapter, person(), options=options(background="as in the photo"))


def test_a_cut_off_image_encoder_is_told_by_name(world, load, monkeypatch, tmp_path):
    import folder_paths

    path = tmp_path / "EVA02_CLIP_L_336_psz14_s6B.pt"
    torch.save({k: v for k, v in files.eva().items() if ".blocks.23." not in k and "head" not in k}, path)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(tmp_path)], {".pt"}))
    text = sentence(world.apply, load(), person())
    assert path.name in text and "not a whole image encoder" in text


def test_a_flux_model_and_an_sd15_model_are_refused_by_name(world, load, recipes):
    adapter = load(shapes=files.official.SDXL)
    assert "SDXL" in sentence(world.apply, adapter, person())
    text = sentence(world.apply, adapter, person(), model=recipes.tiny_flux())
    assert "SDXL" in text and "Flux" in text


def test_options_of_another_system_are_refused_both_ways(world, load):
    assert "PuLID Options" in sentence(world.apply, load(), person(), options=world.options())
    assert "IP-Adapter Options" in sentence(world.apply, world.adapter("faceid"), person(), options=options())


def test_the_encoder_is_read_once_and_goes_with_the_adapter(world, load, monkeypatch):
    import gc

    from likeness.adapters import eva_clip
    from likeness.nodes import companions

    built = []
    build = eva_clip.build_eva
    monkeypatch.setattr(eva_clip, "build_eva", lambda *given: built.append(1) or build(*given))
    companions._towers.clear()
    companions._kept.clear()
    adapter = load()
    for seed in (1, 2):
        world.apply(adapter, person(seed=seed))
    assert len(built) == 1
    del adapter
    gc.collect()
    assert not companions._towers
