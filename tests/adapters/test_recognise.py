"""Which system a file belongs to: told by content, by name, by folder, by hand, and otherwise asked; never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from likeness.adapters import SYSTEMS, Variant, load
from likeness.adapters.instantid import InstantID
from likeness.adapters.system import Kind, Sureness, WeightFile, kind_of
from likeness.errors import LikenessError

SDXL_TEXT = 2048


def refused(path: Path, **options) -> str:
    with pytest.raises(LikenessError) as error:
        load(path, **options)
    sentence = str(error.value)
    assert path.name in sentence and "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.fixture(scope="module")
def ambiguous(official):
    """Weights that are FaceID Portrait (raw embedding) and InstantID alike, for SDXL."""
    return official.groups(official.resampler(SDXL_TEXT, features=512), official.SDXL)


def test_instantids_published_file_is_never_taken_for_a_portrait_adapter(official, ambiguous, tmp_path):
    """It read the wrong recogniser and painted another person, in silence."""
    adapter = load(official.write(tmp_path / "ip-adapter.bin", ambiguous))
    assert isinstance(adapter, InstantID) and adapter.needs.recogniser == "antelopev2"


@pytest.mark.parametrize("name", ["instantid_ip-adapter.safetensors", "x.bin"])
def test_a_name_or_a_folder_tells_instantid(official, ambiguous, tmp_path, name):
    folder = tmp_path / ("models/instantid/sub" if name == "x.bin" else "models")
    folder.mkdir(parents=True)
    assert isinstance(load(official.write(folder / name, ambiguous)), InstantID)


def test_the_folder_a_file_was_found_under_tells_whatever_its_path_says(official, ambiguous, tmp_path):
    """As of a folder that extra_model_paths.yaml adds."""
    file = official.write(tmp_path / "x.bin", ambiguous)
    assert isinstance(load(file, folder="instantid"), InstantID)
    assert load(file, folder="ipadapter").variant is Variant.PORTRAIT_UNNORM


def test_a_name_or_a_folder_tells_the_portrait_adapter(official, ambiguous, tmp_path):
    named = official.write(tmp_path / "ip-adapter-faceid-portrait_sdxl_unnorm.bin", ambiguous)
    (tmp_path / "IPAdapter").mkdir()
    placed = official.write(tmp_path / "IPAdapter" / "x.bin", ambiguous)
    assert load(named).variant is load(placed).variant is Variant.PORTRAIT_UNNORM


def test_the_nearest_folder_decides(official, ambiguous, tmp_path):
    folder = tmp_path / "ipadapter" / "instantid"
    folder.mkdir(parents=True)
    assert isinstance(load(official.write(folder / "x.bin", ambiguous)), InstantID)


def test_a_tie_that_stays_is_a_question_and_a_choice_answers_it(official, ambiguous, tmp_path):
    file = official.write(tmp_path / "mystery.safetensors", ambiguous)
    sentence = refused(file)
    assert "IP-Adapter or InstantID" in sentence and "models/instantid" in sentence
    assert load(file, system="IP-Adapter").variant is Variant.PORTRAIT_UNNORM
    assert isinstance(load(file, system="InstantID"), InstantID)
    assert "choose IP-Adapter" in refused_choice(file)


def refused_choice(file: Path) -> str:
    with pytest.raises(LikenessError) as error:
        load(file, system="Magic")
    return str(error.value)


def test_other_variants_need_neither_name_nor_folder(official, tmp_path):
    cases = {
        Variant.PLUS: official.resampler(SDXL_TEXT),
        Variant.FACEID: official.identity(SDXL_TEXT),
        Variant.PORTRAIT: official.identity(SDXL_TEXT, tokens=16),
        Variant.FACEID_PLUS_V2: official.identity_plus(SDXL_TEXT),
        Variant.FULL_FACE: official.full_face(SDXL_TEXT),
        Variant.BASE: official.pooled(SDXL_TEXT),
    }
    for variant, projection in cases.items():
        file = official.write(tmp_path / f"{variant.name}.bin", official.groups(projection, official.SDXL))
        assert load(file).variant is variant


def test_sd15_has_no_instantid(official, tmp_path):
    """Only one system knows a raw embedding at SD1.5's text width."""
    file = official.write(tmp_path / "x.bin", official.groups(official.resampler(768, features=512), official.SD15))
    assert load(file).variant is Variant.PORTRAIT_UNNORM


# A key or two of each system's files is enough to tell it, in either form.
FOREIGN = {
    "PhotoMaker": ["id_encoder.fuse_module.mlp1.fc1.weight", "lora_weights.unet.mid_block.x.lora.down.weight"],
    "StoryMaker": [
        "image_proj_model.pos_embed",
        "image_proj_model.bg_embed",
        "image_proj_model.proj.0.weight",
        "ip_adapter.0.to_q_lora.down.weight",
        "ip_adapter.1.to_k_ip.weight",
    ],
    "PuLID for FLUX": ["pulid_encoder.latents", "pulid_ca.0.to_q.weight"],
    "FastComposer": ["postfuse_module.mlp1.fc1.weight", "vae.x", "unet.down_blocks.0.x"],
}


def test_each_foreign_file_is_of_one_kind_alone():
    for title, keys in FOREIGN.items():
        file = WeightFile("x", {key: torch.zeros(2, 2) for key in keys})
        sure = {kind.title for kind in SYSTEMS if kind.recognise(file) is Sureness.YES}
        assert sure == {title}


def test_the_surest_kind_wins_whatever_the_folder():
    maybe = Kind("maybe", lambda _: Sureness.POSSIBLE, ("here",))
    sure = Kind("sure", lambda _: Sureness.YES, ("there",))
    assert kind_of(WeightFile("x", {}, parents=("here",)), [maybe, sure]) is sure
    assert kind_of(WeightFile("x", {}), []) is None
