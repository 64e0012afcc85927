"""Load Identity Adapter, and what other packs' loaders put on its socket."""

from __future__ import annotations

import pytest
from helpers.small_world import official, person, same, sentence

from likeness.errors import LikenessError


def test_the_list_shows_what_lies_in_the_folder(world):
    world.file("faceid")
    world.file("plus", "sub/plus.bin")
    [combo] = [i for i in world.classes["LikenessLoadIdentityAdapter"].define_schema().inputs if i.id == "adapter_file"]
    assert {"faceid_0.safetensors", "sub/plus.bin"} <= set(combo.options)
    assert world.run("LikenessLoadIdentityAdapter", adapter_file="sub/plus.bin").name == "plus.bin"


def test_an_empty_folder_is_explained(world, monkeypatch, tmp_path):
    import folder_paths

    from likeness.adapters import SYSTEMS
    from likeness.nodes.adapter_files import MINIATURE, NO_FILES

    for folder in {folder for kind in SYSTEMS for folder in kind.folders}:
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path)], {".bin"}))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    [combo] = [i for i in world.classes["LikenessLoadIdentityAdapter"].define_schema().inputs if i.id == "adapter_file"]
    assert combo.options == [MINIATURE, NO_FILES]
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file=NO_FILES)
    assert "models/ipadapter" in text and "likeness models get" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.bin", "gone.bin"),
        ("../secret.bin", "leaves the models folder"),
        ("/etc/passwd", "leaves the models folder"),
    ],
)
def test_a_missing_file_and_one_outside_are_explained(world, name, expected):
    with pytest.raises(LikenessError, match=expected):
        world.run("LikenessLoadIdentityAdapter", adapter_file=name)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "LFS pointer"),
        (b"<html>", "web page"),
        (b"", "damaged"),
        (b"\x20\0\0\0\0\0\0\0{\"a\":{}", "damaged"),
    ],
)  # fmt: skip
def test_a_corrupt_file_is_explained(world, data, expected):
    (world.folder / "ipadapter" / "corrupt.bin").write_bytes(data)
    try:
        assert expected in sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="corrupt.bin")
    finally:
        (world.folder / "ipadapter" / "corrupt.bin").unlink()


def test_the_version_widget_overrules_the_name_and_knows_its_words(world):
    world.file("faceid-plus")
    for word, variant in (("by file name", "FACEID_PLUS"), ("1", "FACEID_PLUS"), ("2", "FACEID_PLUS_V2")):
        loaded = world.run("LikenessLoadIdentityAdapter", adapter_file="faceid-plus_0.safetensors", plus_version=word)
        assert loaded.adapter.variant.name == variant
    text = sentence(
        world.run, "LikenessLoadIdentityAdapter", adapter_file="faceid-plus_0.safetensors", plus_version="3"
    )
    assert "'3'" in text


def test_a_replaced_file_is_read_again_and_an_unchanged_one_is_not(world):
    node = world.classes["LikenessLoadIdentityAdapter"]
    name = world.file("base", "changing.safetensors")
    first = node.fingerprint_inputs(adapter_file=name)
    assert node.fingerprint_inputs(adapter_file=name) == first
    official.write(world.folder / "ipadapter" / name, world.groups("plus"))
    assert node.fingerprint_inputs(adapter_file=name) != first
    assert node.fingerprint_inputs(adapter_file="gone.bin")


@pytest.mark.parametrize("form", ["raw", "unified"])
def test_adapters_of_the_leading_pack_s_loaders_fit_the_socket(world, form):
    groups = world.groups("faceid")
    raw = {**groups, "faceidplusv2": False, "portraitunnorm": False}
    value = raw if form == "raw" else {
        "clipvision": {"file": None, "model": None},
        "ipadapter": {"file": "faceid.bin", "model": raw},
        "insightface": {"provider": None, "model": None},
    }  # fmt: skip
    model, report = world.apply(value, person())
    assert same(world.sample(model), world.sample(world.apply(world.adapter("faceid"), person())[0]))
    assert "adapter from another pack" in report


@pytest.mark.parametrize(("flag", "structured"), [(True, True), (False, False)])
def test_the_leading_pack_s_word_on_the_version_is_taken(world, flag, structured):
    raw = {**world.groups("faceid-plus"), "faceidplusv2": flag}
    low, high = (
        world.sample(
            world.apply(raw, person(1), clip_vision=world.clip_vision, options=world.options(weight_faceidv2=s))[0]
        )
        for s in (0.1, 1.0)
    )
    assert same(low, high) is not structured


@pytest.mark.parametrize(
    "value",
    [{}, {"ipadapter": None}, {"ipadapter": {"file": None, "model": None}}, {"image_proj": {}}, "text", None, 7],
    ids=str,
)
def test_a_socket_without_an_adapter_is_explained(world, value):
    assert "Load Identity Adapter" in sentence(world.apply, value, person())


def raw_embedding(world, name: str, folder: str) -> str:
    """A file whose content is InstantID's and FaceID Portrait's (raw embedding) alike, as the list calls it."""
    official.write(world.folder / folder / name, world.groups("instantid"))
    return name if folder == "ipadapter" else f"{folder}/{name}"


def test_the_folders_of_other_systems_are_listed_and_tell_whose_a_file_is(world):
    choice = raw_embedding(world, "sub/mystery.safetensors", "instantid")
    node = world.classes["LikenessLoadIdentityAdapter"]
    [combo] = [i for i in node.define_schema().inputs if i.id == "adapter_file"]
    assert choice in combo.options and node.validate_inputs(adapter_file=choice) is True
    loaded = world.run("LikenessLoadIdentityAdapter", adapter_file=choice)
    assert loaded.adapter.title == "InstantID" and loaded.needs.recogniser == "antelopev2"


@pytest.mark.parametrize("system", ["InstantID", "IP-Adapter"])
def test_a_choice_of_the_system_settles_what_content_and_folder_cannot(world, system):
    choice = raw_embedding(world, f"any {system.lower()}.safetensors".replace("instantid", "one"), "ipadapter")
    loaded = world.run("LikenessLoadIdentityAdapter", adapter_file=choice, system=system)
    assert (loaded.adapter.title == "InstantID") is (system == "InstantID")


def test_a_system_that_does_not_exist_is_refused_and_the_others_are_named(world):
    said = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file=world.file("faceid"), system="Magic")
    assert "'Magic'" in said and "by content" in said and "InstantID" in said and "IP-Adapter" in said


def test_a_file_of_another_system_s_folder_that_has_gone_is_named_with_its_folder(world):
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="instantid/gone.bin")
    assert "'gone.bin' was not found" in text and "instantid" in text


def test_another_system_is_another_value(world):
    node, name = world.classes["LikenessLoadIdentityAdapter"], world.file("faceid")
    one, other = (node.fingerprint_inputs(adapter_file=name, system=s) for s in ("by content", "IP-Adapter"))
    assert one != other
