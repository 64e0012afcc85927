from __future__ import annotations

import pytest

from likeness.weights import families
from likeness.weights.families import (
    FAMILIES,
    FLUX,
    FLUX2,
    KREA2,
    MINIATURE,
    OTHER,
    QWEN_IMAGE,
    SD2,
    SD15,
    SDXL,
    TRAINABLE,
)


@pytest.mark.parametrize("family", TRAINABLE, ids=lambda family: family.title)
def test_a_family_is_known_by_its_sites_its_text_and_its_files(family):
    shapes = [(320, family.text_width)] * family.sites
    assert families.of_sites(shapes) is family
    assert families.of_text_width(family.text_width) is family
    assert families.of_checkpoint([f"{prefix}some.weight" for prefix, _ in family.texts]) is family
    assert families.of_text_encoders([kind.name for _, kind in family.texts]) is family
    assert family.text_width == sum(kind.width for _, kind in family.texts)


def test_what_is_not_of_a_family_is_not_taken_for_one():
    assert families.of_sites([(320, 768)] * 15) is OTHER, "pruned"
    assert families.of_sites([]) is OTHER, "no UNet"
    assert families.of_sites([(128, 128)] * 7) is MINIATURE
    assert families.of_sites([(128, 128)] * 6 + [(64, 128)]) is OTHER
    assert families.of_text_width(64) is OTHER
    assert families.of_checkpoint(["conditioner.embedders.0.transformer.x"]) is None, "one of SDXL's two is missing"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Flux", FLUX),
        ("FluxSchnell", FLUX),
        ("Flux2", FLUX2),
        ("Krea2", KREA2),
        ("QwenImage", QWEN_IMAGE),
        ("SD3", OTHER),
        ("SDXL", OTHER),
    ],
)
def test_a_family_without_sites_is_known_by_the_host_s_name(name, family):
    assert families.of_host(name) is family


def test_no_two_families_share_what_tells_them_apart():
    assert len({family.title for family in FAMILIES}) == len(FAMILIES)
    unets = [family for family in FAMILIES if family.sites]
    assert len({(family.sites, family.text_width) for family in unets}) == len(unets)
    names = [name for family in FAMILIES if not family.sites for name in family.host]
    assert len(set(names)) == len(names) >= len(FAMILIES) - len(unets)


def test_titles_stand_in_sentences():
    assert families.listed(TRAINABLE) == "SD1.5, SD2 and SDXL"
    assert families.listed([SD15, SD2], "or") == "SD1.5 or SD2"
    assert families.listed([SDXL]) == "SDXL"


@pytest.mark.parametrize(("width", "name"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g"), (32, "clip_l")])
def test_vectors_belong_to_the_encoder_of_their_width(width, name):
    assert families.text_encoder_of_width(width).name == name
