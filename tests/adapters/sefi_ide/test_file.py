"""Files of SeFi-IDE subjects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from likeness.adapters.sefi_ide.file import Subject, load_subject, subject_metadata, subject_tensors
from likeness.errors import LikenessError


def subject() -> Subject:
    torch.manual_seed(0)
    tables = {"clip_l": torch.randn(5, 2, 768), "clip_g": torch.randn(5, 2, 1280)}
    return Subject("<anna>", "woman", tables, training={"steps": "800"})


def written(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changed: str) -> Path:
    path = folder / "anna.safetensors"
    tensors = subject_tensors(subject()) if tensors is None else tensors
    save_file(tensors, path, subject_metadata(subject()) | changed)
    return path


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    loaded, whole = load_subject(written(tmp_path)), subject()
    assert (loaded.placeholder, loaded.class_word, loaded.stages) == ("<anna>", "woman", 5)
    assert loaded.timesteps == 1000
    assert loaded.training == {"steps": "800"}
    assert all(torch.equal(loaded.tables[name], table) for name, table in whole.tables.items())


def test_a_plain_embedding_is_the_mean_of_the_value_tokens() -> None:
    whole = subject()
    torch.testing.assert_close(whole.plain_embedding().vectors["clip_l"][0], whole.tables["clip_l"][:, 1].mean(0))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": "other/1"}, "is not a SeFi-IDE subject"),
        ({"stages": "7"}, "instead of"),
        ({"placeholder": ""}, "miss the placeholder"),
        ({"timesteps": "many"}, "miss the placeholder"),
    ],
)
def test_metadata_are_checked(tmp_path: Path, changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(LikenessError, match=sentence):
        load_subject(written(tmp_path, None, **changed))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"other": torch.zeros(600)}, "holds no SeFi-IDE tokens"),
        ({"sefi.clip_l.tokens": torch.zeros(5, 2, 1280)}, r"instead of \(5, 2, 768\)"),
        ({"sefi.clip_l.tokens": torch.full((5, 2, 768), torch.nan)}, "not numbers"),
    ],
)
def test_tokens_are_checked(tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(LikenessError, match=sentence):
        load_subject(written(tmp_path, tensors))
