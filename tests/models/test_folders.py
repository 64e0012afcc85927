from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from likeness import models_download
from likeness.errors import LikenessError
from likeness.models import places
from likeness.models_download import (
    find_file,
    find_insightface_pack,
    folders,
    list_files,
    list_insightface_packs,
    locate,
    register_folders,
    registry,
    resolve,
)

Put = Callable[..., Path]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def named(name: str) -> models_download.ModelFile:
    return next(model for model in registry() if model.name == name)


# Registering with the host


def test_our_folders_become_known_to_the_host(host: types.ModuleType):
    register_folders()
    for kind in models_download.OUR_KINDS:
        assert os.path.join(host.models_dir, kind) in host.get_folder_paths(kind)
    assert not Path(host.models_dir).exists(), "no folder is created"


def test_onnx_is_added_to_face_folders_without_touching_the_shared_set(host: types.ModuleType):
    register_folders()
    assert ".onnx" in host.folder_names_and_paths["insightface"][1]
    assert ".onnx" not in host.folder_names_and_paths["ipadapter"][1]
    assert ".onnx" not in host.supported_pt_extensions
    assert host.folder_names_and_paths["ipadapter"][1] is not host.supported_pt_extensions


def test_what_others_registered_is_kept(host: types.ModuleType):
    paths, suffixes = ["/elsewhere/faces"], {".xyz"}
    host.folder_names_and_paths["insightface"] = (paths, suffixes)
    photomaker = host.folder_names_and_paths["photomaker"]
    register_folders()
    entry = host.folder_names_and_paths["insightface"]
    assert entry[0] is paths and entry[1] is suffixes == {".xyz"}
    assert paths == ["/elsewhere/faces", os.path.join(host.models_dir, "insightface")]
    assert host.folder_names_and_paths["photomaker"] is photomaker and len(photomaker[0]) == 1


def test_registering_twice_changes_nothing(host: types.ModuleType):
    register_folders()
    before = {kind: list(paths) for kind, (paths, _) in host.folder_names_and_paths.items()}
    register_folders()
    assert before == {kind: paths for kind, (paths, _) in host.folder_names_and_paths.items()}


def test_without_a_host_nothing_is_registered_and_nothing_imported():
    register_folders()
    assert "folder_paths" not in sys.modules


@pytest.mark.host
def test_the_real_host_accepts_our_folders(host_path: Path):
    code = """
import folder_paths
from likeness import models_download
before = {kind: (id(paths), id(suffixes)) for kind, (paths, suffixes) in folder_paths.folder_names_and_paths.items()}
models_download.register_folders()
after = folder_paths.folder_names_and_paths
assert all((id(after[kind][0]), id(after[kind][1])) == ids for kind, ids in before.items())
assert all(isinstance(folder_paths.get_filename_list(kind), list) for kind in models_download.OUR_KINDS)
assert ".onnx" in after["insightface"][1] and ".onnx" not in folder_paths.supported_pt_extensions
assert all(str(path) in folder_paths.get_folder_paths("loras") for path in models_download.folders("loras"))
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(host_path)}, check=True)


# Where files are looked for


def test_extra_model_paths_come_before_our_own_folder(host: types.ModuleType, tmp_path: Path):
    host.add_model_folder_path("ipadapter", str(tmp_path / "shared"))
    register_folders()
    assert folders("ipadapter") == [tmp_path / "shared", Path(host.models_dir) / "ipadapter"]


def test_a_folder_that_another_pack_took_over_is_still_searched(host: types.ModuleType, put: Put):
    register_folders()
    host.folder_names_and_paths["facerestore_models"] = (["/only/mine"], {".pth"})
    path = put(Path(host.models_dir) / "facerestore_models" / "codeformer.pth")
    assert find_file("facerestore_models", "codeformer.pth") == path


def test_outside_the_host_the_order_is_ours_then_comfyui_path_then_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare_machine: Path
):
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path / "a"))
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(tmp_path / "b"), str(tmp_path / "c")]))
    of_hosts = [tmp_path / name / "models" / "pulid" for name in ("b", "c")]
    assert folders("pulid") == [tmp_path / "a" / "pulid", *of_hosts, bare_machine / "pulid"]


def test_a_checkout_in_custom_nodes_finds_its_own_comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(places, "__file__", str(tmp_path / "ui" / "custom_nodes" / "pack" / "models" / "places.py"))
    assert folders("loras")[0] == tmp_path / "ui" / "models" / "loras"


def test_kinds_with_two_directories_search_both(bare_machine: Path):
    assert folders("text_encoders") == [bare_machine / "text_encoders", bare_machine / "clip"]


def test_downloads_need_a_models_folder_that_is_there_or_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare_machine: Path
):
    with pytest.raises(LikenessError, match="LIKENESS_MODELS"):
        models_download.download_root()
    bare_machine.mkdir(parents=True)
    assert models_download.download_root() == bare_machine
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path / "new"))
    assert models_download.download_root() == tmp_path / "new"


# Listing


def test_lists_are_relative_sorted_and_filtered(put: Put, bare_machine: Path):
    for name in ("B.safetensors", "a.bin", "sub/c.safetensors", "readme.md", "d.safetensors.part", ".cache/x.bin"):
        put(bare_machine / "ipadapter" / name)
    put(bare_machine / "ipadapter" / "e.bin.mismatch")
    assert list_files("ipadapter") == ["a.bin", "B.safetensors", "sub/c.safetensors"]
    assert list_files("ipadapter", {".bin"}) == ["a.bin"]


def test_an_absent_folder_lists_as_empty():
    assert list_files("storymaker") == []


def test_known_files_in_other_packs_folders_are_listed_and_found(put: Put, bare_machine: Path):
    path = put(bare_machine / "facerestore_models" / "parsing_bisenet.pth")
    put(bare_machine / "facerestore_models" / "codeformer.pth")
    assert list_files("facexlib") == ["parsing_bisenet.pth"]
    assert find_file("facexlib", "parsing_bisenet.pth") == path


# Finding


@pytest.mark.parametrize(
    ("kind", "name", "place"),
    [
        ("ipadapter", "mine.bin", "ipadapter/mine.bin"),
        ("ipadapter", "sub/mine.bin", "ipadapter/sub/mine.bin"),
        ("loras", "ip-adapter-faceid_sdxl_lora.safetensors", "loras/ipadapter/ip-adapter-faceid_sdxl_lora.safetensors"),
        ("loras", "any.safetensors", "loras/people/any.safetensors"),
        ("facexlib", "detection_Resnet50_Final.pth", "facedetection/detection_Resnet50_Final.pth"),
        ("facexlib", "parsing_bisenet.pth", "facexlib/parsing/parsing_bisenet.pth"),
        ("facexlib", "parsing_bisenet.pth", "facexlib/79999_iter.pth"),
        ("facexlib", "unknown.pth", "facedetection/unknown.pth"),
        ("clip_vision", "EVA02_CLIP_L_336_psz14_s6B.pt", "clip/EVA02_CLIP_L_336_psz14_s6B.pt"),
        ("controlnet", "instantid_controlnet.safetensors", "controlnet/instantid/diffusion_pytorch_model.safetensors"),
        ("facerestore_models", "codeformer.pth", "facerestore_models/codeformer-v0.1.0.pth"),
        ("storymaker", "mask.bin", "photomaker/mask.bin"),
    ],
)
def test_files_are_found_where_people_have_them(kind: str, name: str, place: str, put: Put, bare_machine: Path):
    path = put(bare_machine / place)
    assert find_file(kind, name) == path


def test_files_in_the_hub_cache_are_found(put: Put, bare_machine: Path):
    cache = bare_machine.parents[2] / ".cache" / "huggingface" / "hub" / "models--QuanSun--EVA-CLIP"
    path = put(cache / "snapshots" / "abc" / "EVA02_CLIP_L_336_psz14_s6B.pt")
    assert find_file("clip_vision", "EVA02_CLIP_L_336_psz14_s6B.pt") == path


def test_a_missing_file_says_where_was_looked_and_how_to_get_it(bare_machine: Path):
    with pytest.raises(LikenessError) as caught:
        find_file("instantid", "ip-adapter.bin")
    message = str(caught.value)
    for part in (
        str(bare_machine / "instantid"),
        "likeness models get instantid/ip-adapter",
        "https://huggingface.co/InstantX/InstantID",
        "1.69 GB",
        "models/instantid",
        "Apache-2.0",
    ):
        assert part in message


def test_a_missing_file_nobody_publishes_names_the_folders_only(bare_machine: Path):
    with pytest.raises(LikenessError, match="likeness models list") as caught:
        find_file("ipadapter", "my-own.safetensors")
    assert str(bare_machine / "ipadapter") in str(caught.value)


def test_two_files_of_one_bare_name_are_not_chosen_between(put: Put, bare_machine: Path):
    put(bare_machine / "loras" / "a" / "same.safetensors")
    put(bare_machine / "loras" / "b" / "same.safetensors")
    with pytest.raises(LikenessError, match="choose one"):
        find_file("loras", "same.safetensors")


def test_a_git_lfs_pointer_is_recognised(put: Put, bare_machine: Path):
    put(bare_machine / "ipadapter" / "x.safetensors", POINTER)
    with pytest.raises(LikenessError, match="Git LFS pointer"):
        find_file("ipadapter", "x.safetensors")


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:\\x.bin", "", ".", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name: str, put: Put, bare_machine: Path):
    put(bare_machine / "secret")
    for search in (resolve, find_file):
        with pytest.raises(LikenessError, match="leaves the models folder"):
            search("ipadapter", name)


def test_links_that_the_user_made_are_followed(put: Put, bare_machine: Path, tmp_path: Path):
    put(tmp_path / "big disk" / "x.bin")
    bare_machine.mkdir(parents=True)
    (bare_machine / "ipadapter").symlink_to(tmp_path / "big disk")
    assert resolve("ipadapter", "x.bin") == bare_machine / "ipadapter" / "x.bin"
    assert list_files("ipadapter") == ["x.bin"]


def test_a_diffusers_folder_counts_once_its_index_is_there(put: Put, bare_machine: Path):
    folder = bare_machine / "blip_diffusion" / "blipdiffusion"
    put(folder / "unet" / "config.json")
    assert locate(named("blip-diffusion")) is None
    put(folder / "model_index.json")
    assert locate(named("blip-diffusion")) == folder


# Face packs


@pytest.mark.parametrize(
    "place",
    [
        "insightface/models/antelopev2",
        "insightface/models/antelopev2/antelopev2",
        "insightface/antelopev2",
        "../../../.insightface/models/antelopev2",
    ],
)
def test_a_face_pack_is_found_nested_or_not(place: str, put: Put, bare_machine: Path):
    path = put(Path(os.path.normpath(bare_machine / place)) / "glintr100.onnx")
    assert find_insightface_pack("antelopev2") == path.parent
    assert list_insightface_packs() == ["antelopev2"]
    assert locate(named("antelopev2/glintr100")) == path


def test_the_fullest_of_several_folders_of_a_pack_wins(put: Put, bare_machine: Path):
    base = bare_machine / "insightface" / "models" / "antelopev2"
    put(base / "1k3d68.onnx")
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        put(base / "antelopev2" / name)
    assert find_insightface_pack("antelopev2") == base / "antelopev2"


def test_a_missing_pack_names_folders_files_licence_and_the_command(bare_machine: Path):
    (bare_machine / "insightface" / "models" / "antelopev2").mkdir(parents=True)
    with pytest.raises(LikenessError) as caught:
        find_insightface_pack("antelopev2")
    message = str(caught.value)
    for part in (
        "likeness models get antelopev2`",
        "glintr100.onnx",
        "non-commercial",
        str(bare_machine / "insightface"),
    ):
        assert part in message


def test_packs_are_listed_with_the_published_ones_first(put: Put, bare_machine: Path):
    for pack in ("aaa", "antelopev2", "buffalo_l", "empty"):
        put(bare_machine / "insightface" / "models" / pack / ("x.onnx" if pack != "empty" else "x.txt"))
    assert list_insightface_packs() == ["buffalo_l", "antelopev2", "aaa"]


def test_a_pack_name_is_one_word():
    with pytest.raises(LikenessError):
        find_insightface_pack("../antelopev2")
