"""The two nodes for graphs of IPAdapter_plus do what our own nodes do with that pack's settings."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.small_world import pictures, same, sentence

from likeness.faces import FaceAnalysis
from likeness.faces.detection import Detection

AS_THAT_PACK = {"unconditional": "black image", "mask_resize": "bilinear", "combine_embeds": "concat"}


class Middle:
    """Finds a sure face in the middle of every image, and an unsure, larger one around it."""

    name, threshold, sizes = "middle", 0.5, (64,)

    def detect(self, image_bgr, size=None):
        height, width = image_bgr.shape[:2]
        five = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)], np.float32)

        def face(share, score):
            size = np.array([width, height], np.float32) * share
            corner = (np.array([width, height], np.float32) - size) / 2
            return Detection(np.concatenate([corner, corner + size]), score, corner + five * size)

        return [face(0.9, 0.6), face(0.6, 0.9)]


class Colours:
    """An embedding of the face's mean colour."""

    name, licence = "buffalo_l", "none"

    def embed(self, image_rgb, keypoints):
        x, y = keypoints.mean(0).astype(int)
        colour = image_rgb[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(0)
        return np.sin(np.outer(np.arange(1, 513), colour / 40).sum(1)).astype(np.float32) * 20


ANALYSIS = FaceAnalysis("middle", Middle(), Colours())  # pyright: ignore[reportArgumentType]


def photos(count=1, seed=3):
    coarse = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (160, 160)).movedim(1, -1)


@pytest.fixture
def nodes(world, monkeypatch):
    """The world's nodes, and these two."""
    from likeness.nodes import ipadapter_plus

    for node in ipadapter_plus.NODES:
        monkeypatch.setitem(world.classes, node.GET_SCHEMA().node_id, node)
    return ipadapter_plus


def applied(world, adapter, **inputs):
    inputs = {"model": world.model, "adapter": adapter, **inputs}
    return world.run("LikenessApplyReference", every=True, **inputs)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"weight_type": "standard"}, {}),
        ({"weight_type": "prompt is more important"}, {"weight_type": "ease out"}),
        ({"weight_type": "weak output"}, {"weight_type": "weak output"}),
        ({"combine_embeds": "average"}, {"combine_embeds": "average"}),
        ({"embeds_scaling": "K+mean(V) w/ C penalty"}, {"embeds_scaling": "K+mean(V) w/ C penalty"}),
        ({"image_negative": pictures(seed=5)}, {"image_negative": pictures(seed=5)}),
        ({"layer_weights": "0:1.0, middle:2"}, {"layer_weights": "0:1.0, middle:2"}),
        ({"detail_tiles": 2, "detail_share": 1.0}, {"detail_tiles": 2, "detail_share": 1.0}),
        ({"unfold_batch": True}, {"unfold_batch": True}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_a_picture_acts_as_through_our_own_two_nodes(world, nodes, given, options):
    image, mask = pictures(2), torch.zeros(1, 8, 8)
    mask[:, :5] = 1
    window = {"weight": 0.7, "start_at": 0.0, "end_at": 0.8, "attn_mask": mask, "clip_vision": world.clip_vision}
    model, report, shown = applied(world, world.adapter("plus"), image=image, **window, **given)
    expected, _ = world.apply(
        world.adapter("plus"), options=world.options(**{**AS_THAT_PACK, **options, "image": image}), **window
    )
    assert "the reference" in report and torch.equal(shown, image)
    assert same(world.sample(model, shape=(2, 4, 8, 8)), world.sample(expected, shape=(2, 4, 8, 8)))


def test_the_reference_for_tiles_is_one_picture(world, nodes):
    given = {"clip_vision": world.clip_vision, "image": pictures(), "sharpening": 0.3}
    model, *_ = applied(world, world.adapter("plus"), tiled=True, **given)
    image = {"image": given["image"], "sharpening": 0.3, "tiled": True}
    expected, _ = world.apply(
        world.adapter("plus"), options=world.options(**AS_THAT_PACK, **image), clip_vision=world.clip_vision
    )
    assert same(world.sample(model), world.sample(expected))


def test_the_precise_types_push_as_hard_as_the_strength_or_as_told(nodes, monkeypatch, world):
    seen = []
    monkeypatch.setattr(nodes, "ReferenceOptions", lambda **given: seen.append(given) or SimpleNamespace(**given))
    monkeypatch.setattr(nodes.ApplyIdentity, "execute", lambda *given: SimpleNamespace(result=(None, "")))
    for own in (False, True):
        applied(world, world.adapter("plus"), image=pictures(), own_boost=own, precise_boost=0.25)
    assert [(given["style_boost"], given["composition_boost"]) for given in seen] == [(None, None), (0.25, 0.25)]


@pytest.mark.parametrize("kind", ["faceid", "portrait", "faceid-plus"])
def test_faces_are_found_in_the_pictures_and_the_lora_is_left_to_the_graph(world, nodes, kind):
    from likeness.faces import Choice, to_photos
    from likeness.faces.found import Rule, find_faces, identity_of

    image = photos(2)
    model, report, faces = applied(
        world, world.adapter(kind), image=image, face_analysis=ANALYSIS, clip_vision=world.clip_vision
    )
    identity, _ = identity_of(find_faces(ANALYSIS, to_photos(image), Rule(Choice.SCORE)), "the reference")
    expected, _ = world.apply(
        *(world.adapter(kind), identity),
        options=world.options(**AS_THAT_PACK),
        clip_vision=world.clip_vision,
        lora_strength=0.0,
    )
    assert faces.shape == (2, 512, 512, 3) and faces.std() > 0.05
    assert "LoRA" not in report
    assert same(world.sample(model), world.sample(expected))


def test_a_face_is_asked_for_in_one_sentence(world, nodes):
    text = sentence(applied, world, world.adapter("faceid"), image=photos())
    assert "connect Load Face Analysis" in text


def test_every_preset_names_files_of_the_registry(nodes):
    from likeness.models_download import select

    for preset, files in nodes.PRESETS.items():
        for name in (*files.sd15, *files.sdxl, files.encoder):
            assert len(select(name)) == 1, (preset, name)


@pytest.mark.parametrize("width", [768, 2048, 1024, None])
def test_a_preset_without_its_file_says_which_and_how_to_get_it(world, nodes, monkeypatch, width):
    monkeypatch.setattr(nodes, "sites_of", lambda model: [SimpleNamespace(context_dim=width)] if width else [])
    for preset, files in nodes.PRESETS.items():
        names = {768: files.sd15, 2048: files.sdxl}.get(width, ())
        text = sentence(nodes._file_of, preset, files, None)
        assert (f"likeness models get {names[0]}" if names else "has no adapter for this MODEL") in text
    assert "'Kolors' is not a preset" in sentence(
        world.run, "LikenessLoadAdapterPreset", model=world.model, preset="Kolors"
    )


@pytest.mark.parametrize(
    ("preset", "kind", "file"),
    [
        ("PLUS (high strength)", "plus", "ip-adapter-plus_sd15.safetensors"),
        ("FACEID", "faceid", "ip-adapter-faceid_sd15.bin"),
    ],
)
def test_a_preset_brings_all_that_apply_reference_needs(world, nodes, monkeypatch, preset, kind, file):
    import comfy.clip_vision

    world.file(kind, file)
    monkeypatch.setattr(nodes, "load_pack", lambda folder, provider: ANALYSIS)
    monkeypatch.setattr(nodes, "find_insightface_pack", lambda name: name)
    monkeypatch.setattr(comfy.clip_vision, "load", lambda path: world.clip_vision)
    found = nodes._registered
    monkeypatch.setattr(nodes, "_registered", lambda name: world.folder if name.startswith("clip") else found(name))
    monkeypatch.setattr(nodes, "sites_of", lambda model: [SimpleNamespace(context_dim=768)])
    try:
        tuned, adapter = world.run(
            "LikenessLoadAdapterPreset", every=True, model=world.model, preset=preset, lora_strength=0.5
        )
        model, report, _ = world.run(
            "LikenessApplyReference", every=True, model=tuned, adapter=adapter, image=photos(seed=8)
        )
    finally:
        (world.folder / "ipadapter" / file).unlink()
    assert "tokens at" in report
    assert len(tuned.patches) == (2 * 4 * len(world.sites) if kind == "faceid" else 0)
    assert len(model.patches) == len(tuned.patches)
    assert not same(world.sample(model), world.sample(world.model))
