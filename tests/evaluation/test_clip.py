from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.cli import opening
from likeness.errors import LikenessError
from likeness.evaluation.clip import FolderClip
from likeness.evaluation.prompts import clip_t
from likeness.evaluation.table import read_csv
from likeness.miniature.models.networks import build_tokenizer

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CLIP with random weights, in the published layout."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    place = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision = {**small, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 48, 40, 3, generator=torch.Generator().manual_seed(1))


def test_it_agrees_with_the_library_it_is_read_by(folder, pictures):
    from transformers import CLIPModel, CLIPProcessor

    texts = ["a photo of a person", "a person in the forest", "a smiling person wearing a red hat"]
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    photos = [Image.fromarray((p.numpy() * 255).round().astype(np.uint8)) for p in pictures]
    with torch.no_grad():
        out = model(**processor(text=texts, images=photos, return_tensors="pt", padding=True))
    expected = (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(clip_t(pictures, texts, FolderClip(folder)), expected, atol=1e-5, rtol=0)


def test_each_text_is_encoded_alike_alone_and_in_company(folder):
    clip = FolderClip(folder)
    together = clip.encode_texts(["a person", "a photo of a person wearing a red shirt in the forest"])
    torch.testing.assert_close(together[:1], clip.encode_texts(["a person"]), atol=1e-6, rtol=0)
    assert clip.count_tokens("a person") == 4


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_that_lacks_a_file_says_so(folder, tmp_path, missing):
    for path in folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(LikenessError, match=r"whole CLIP|cannot be read"):
        FolderClip(tmp_path)


def test_corrupt_weights_say_so(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 900 if path.suffix == ".safetensors" else None])
    with pytest.raises(LikenessError, match="copy the folder again"):
        FolderClip(tmp_path)


@pytest.fixture
def study(tmp_path, monkeypatch, judge):
    monkeypatch.setattr(opening, "open_faces", lambda name: judge)
    pixels = np.broadcast_to(np.array((255, 60, 60), np.uint8), (64, 64, 3)).copy()
    for path in ("people/ann/refs/1.png", "results/faceid/ann/hat-1.png", "results/faceid/ann/a person-1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / path)
    (tmp_path / "results" / "prompts.json").write_text(json.dumps({"hat": "a photo of sks wearing a red hat"}))
    return tmp_path


def test_the_command_measures_prompts_once(study, folder, monkeypatch):
    arguments = ["evaluate", str(study), "--clip", str(folder), "--word", "sks"]
    result = CliRunner().invoke(cli.command_tree(), arguments)
    assert result.exit_code == 0, result.output
    records = {record.prompt: record.value("clip_t") for record in read_csv(study / "report" / "records.csv")}
    picture = torch.from_numpy(np.array(Image.open(study / "people/ann/refs/1.png"))).float()[None] / 255
    for name, text in (("hat", "a photo of person wearing a red hat"), ("a person", "a person")):
        assert records[name] == pytest.approx(float(clip_t(picture, [text], FolderClip(folder))), abs=1e-6)
    report = (study / "report" / "report.md").read_text()
    assert "CLIP-T" in report and f"--clip {folder} --word sks" in report
    monkeypatch.setattr(FolderClip, "encode_images", lambda *_: pytest.fail("measured again"))
    again = CliRunner().invoke(cli.command_tree(), arguments)
    assert again.exit_code == 0 and (study / "report" / "report.md").read_text() == report


def test_prompts_that_are_no_object_say_so(study, folder):
    (study / "results" / "prompts.json").write_text("[]")
    result = CliRunner().invoke(cli.command_tree(), ["evaluate", str(study), "--clip", str(folder)])
    assert isinstance(result.exception, LikenessError) and "prompts.json is not what describes" in str(result.exception)
