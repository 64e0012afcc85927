"""Files that are no adapter, or no longer one: each is refused in one sentence, and none of them runs code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import bad_values
import pytest
import torch
from safetensors.torch import save, save_file

from likeness.adapters import load
from likeness.errors import LikenessError
from likeness.weights.files import read_weights


def refused(path: Path) -> str:
    """The sentence, which names the file, is a single line, and ends like one."""
    with pytest.raises(LikenessError) as error:
        load(path)
    sentence = str(error.value)
    assert path.name in sentence
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pickled(content: Any, legacy: bool = False) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def adapter_file(official, tmp_path_factory) -> Path:
    groups = official.groups(official.identity(768), official.SD15)
    return official.write(tmp_path_factory.mktemp("whole") / "adapter.safetensors", groups)


@pytest.fixture(scope="module")
def adapter_pickle(official, tmp_path_factory) -> Path:
    groups = official.groups(official.identity(768), official.SD15)
    return official.write(tmp_path_factory.mktemp("whole") / "adapter.bin", groups)


# Damaged downloads ----------------------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a614c3ab53c13f2449bcea619606a\nsize 98183288\n"


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_git_lfs_pointer_is_explained(tmp_path, suffix):
    assert "Git LFS pointer" in refused(written(tmp_path / f"a{suffix}", LFS))


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>", b"\n\n  <html>", b"\xef\xbb\xbf<!doctype html>", b"<?xml ?>"]
)
def test_a_web_page_is_explained(tmp_path, page):
    assert "web page" in refused(written(tmp_path / "a.safetensors", page))


@pytest.mark.parametrize("text", [b"Invalid username or password.", b'{"error":"Repository not found"}', b"Entry"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_an_error_message_in_place_of_a_file_is_not_taken_for_code(tmp_path, text, suffix):
    sentence = refused(written(tmp_path / f"a{suffix}", text))
    assert "not a weight file" in sentence and "code" not in sentence


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"\0" * 4096, bytes(range(256)) * 8], ids=["empty", "zeros", "noise"])
def test_an_empty_or_meaningless_file_is_refused(tmp_path, suffix, data):
    assert "download it again" in refused(written(tmp_path / f"a{suffix}", data))


@pytest.mark.parametrize("keep", [8, 9, 100, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_refused(tmp_path, adapter_file, keep):
    data = adapter_file.read_bytes()
    cut = written(tmp_path / "cut.safetensors", data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert "truncated" in refused(cut)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_a_truncated_pickle_is_refused(tmp_path, adapter_pickle, keep):
    data = adapter_pickle.read_bytes()
    cut = written(tmp_path / "cut.bin", data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert "truncated" in refused(cut)


def test_a_truncated_pickle_of_the_old_form_is_refused(tmp_path):
    data = pickled({"image_proj": {"a": torch.zeros(1000)}}, legacy=True)
    for keep in (2, 20, 200, len(data) - 100):
        assert "truncated" in refused(written(tmp_path / "cut.bin", data[:keep]))


def test_a_safetensors_header_that_lies_is_refused(tmp_path, adapter_file):
    data = bytearray(adapter_file.read_bytes())
    data[9:12] = b"???"
    assert "damaged" in refused(written(tmp_path / "a.safetensors", bytes(data)))


def test_a_zip_archive_is_refused(tmp_path):
    path = tmp_path / "adapter.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "unpack me first")
    assert "not a weight file" in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "gone.safetensors")
    (tmp_path / "folder.bin").mkdir()
    assert "does not exist" in refused(tmp_path / "folder.bin")


@pytest.mark.parametrize("kind", sorted(set(bad_values.FILES) - {"unreadable"}))
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_whatever_lies_at_the_path_ends_in_a_sentence(tmp_path, suffix, kind):
    bad_values.FILES[kind](tmp_path / f"a{suffix}")
    assert refused(tmp_path / f"a{suffix}")


def test_a_file_that_may_not_be_opened_is_told(tmp_path, monkeypatch):
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    path = written(tmp_path / "a.bin", b"x")
    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read (Permission denied)" in refused(path)


# Pickled code ---------------------------------------------------------------------------------------------------------


class Intruder:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["archive", "legacy", "plain", "named safetensors"])
def test_pickled_code_is_refused_and_never_runs(tmp_path, form):
    mark = tmp_path / "was here"
    content = {"image_proj": {"latents": torch.zeros(2)}, "ip_adapter": {"x": Intruder(mark)}}
    data = pickle.dumps(content, protocol=2) if form == "plain" else pickled(content, legacy=form == "legacy")
    path = written(tmp_path / ("a.safetensors" if form == "named safetensors" else "a.bin"), data)
    sentence = refused(path)
    assert "program code" in sentence and ".safetensors" in sentence
    assert not mark.exists()
    touch, arguments = Intruder(mark).__reduce__()
    touch(*arguments)
    assert mark.exists(), "the intruder works, so the test can fail"


def test_a_whole_pickled_module_is_refused(tmp_path):
    assert "program code" in refused(written(tmp_path / "a.bin", pickled(torch.nn.Linear(2, 2))))


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 7])
def test_pickles_of_other_things_are_refused(tmp_path, content):
    assert "not a weight file" in refused(written(tmp_path / "a.bin", pickled(content)))


# Whole files of something else ----------------------------------------------------------------------------------------

OTHERS = {
    "kohya LoRA": (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is a LoRA"),
    "text LoRA": (["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "is a LoRA"),
    "FaceID companion": (
        ["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight"],
        "FaceID files bring their LoRA",
    ),
    "peft LoRA": (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "is a LoRA"),
    "diffusers LoRA": (["unet.mid_block.attentions.0.attn1.processor.to_q.lora.down.weight"], "is a LoRA"),
    "CLIP vision": (["vision_model.embeddings.class_embedding", "visual_projection.weight"], "CLIP vision model"),
    "OpenCLIP": (["visual.class_embedding", "visual.conv1.weight"], "CLIP vision model"),
    "checkpoint": (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"], "Load Checkpoint"),
    "ControlNet": (["control_model.input_blocks.0.0.weight"], "ControlNet"),
    "diffusers ControlNet": (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "ControlNet"),
    "UNet": (["down_blocks.0.attentions.0.norm.weight"], "Load Diffusion Model"),
    "FLUX": (["double_blocks.0.img_attn.qkv.weight"], "Load Diffusion Model"),
    "anything": (["something.weight"], "not an identity adapter"),
    "half an adapter": (["ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight"], "not a complete IP-Adapter"),
    "nothing": ([], "not an identity adapter"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_other_weight_files_are_named_with_where_they_belong(tmp_path, kind, suffix):
    keys, expected = OTHERS[kind]
    weights = {key: torch.zeros(4, 4) for key in keys}
    path = tmp_path / f"adapter{suffix}"
    if suffix == ".bin":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    sentence = refused(path)
    assert expected in sentence


# Reading --------------------------------------------------------------------------------------------------------------


def test_the_content_decides_over_the_suffix(official, tmp_path, adapter_file, adapter_pickle):
    swapped = [(adapter_file, "really safetensors.bin"), (adapter_pickle, "really a pickle.safetensors")]
    for source, name in swapped:
        assert load(written(tmp_path / name, source.read_bytes())).id_dim == 512


def test_pickles_of_the_old_form_are_read(tmp_path):
    weights, metadata = read_weights(written(tmp_path / "a.bin", pickled({"a": {"b": torch.ones(3)}}, legacy=True)))
    assert weights["a.b"].tolist() == [1, 1, 1] and metadata == {}


def test_nested_groups_are_flattened_and_other_values_left_out(tmp_path):
    tree = {"a": {"b": {"c": torch.ones(1)}, 7: torch.zeros(1)}, "epoch": 3, "note": "x", "none": None}
    weights, _ = read_weights(written(tmp_path / "a.bin", pickled(tree)))
    assert weights.keys() == {"a.b.c", "a.7"}


def test_metadata_comes_along(tmp_path):
    path = written(tmp_path / "a.safetensors", save({"a": torch.ones(1)}, {"x": "y"}))
    assert read_weights(path)[1] == {"x": "y"}
