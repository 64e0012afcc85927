from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest

from likeness import models_download
from likeness.errors import LikenessError
from likeness.models_download import ModelFile, registry, select, systems

ROOT = Path(models_download.__file__).parent
HOST_KINDS = {"checkpoints", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "controlnet"}
HOST_KINDS |= {"upscale_models", "photomaker"}
OTHER_PACKS_KINDS = {"ultralytics"}


def named(name: str) -> ModelFile:
    (model,) = [model for model in registry() if model.name == name]
    return model


def test_names_and_targets_are_unique():
    for values in ([model.name for model in registry()], [model.target for model in registry()]):
        assert len(values) == len(set(values)) > 90


@pytest.mark.parametrize("model", registry(), ids=lambda model: model.name)
def test_every_record_is_whole(model: ModelFile):
    assert re.fullmatch(r"[A-Za-z0-9._/-]+", model.name), "a name is typed on a command line"
    assert model.system in systems()
    assert model.variant and model.licence and model.needed_by
    assert model.commercial in (True, False, None)
    for address in filter(None, (model.url, model.page)):
        assert urlsplit(address).scheme == "https" and urlsplit(address).hostname
    for path in (PurePosixPath(model.target), *map(PurePosixPath, model.aliases)):
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in str(path)
    assert "/" not in model.filename and model.folder
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in model.sha256)
    assert model.size_bytes is None or model.size_bytes > 1000
    assert model.url or model.page or model.notes, "a file we cannot fetch says where it is"


def test_every_system_has_files_or_a_reason_why_not():
    with_files = {model.system for model in registry()}
    for name, system in systems().items():
        assert system.title and (name in with_files or system.no_weights), name


def test_every_adapter_and_every_trained_method_stands_on_the_page():
    from likeness.adapters import SYSTEMS
    from likeness.training.methods import METHODS

    for kind in SYSTEMS:
        assert {model.system for model in registry() if model.kind in kind.folders}, kind.title
    assert {method.kind for method in METHODS} <= set(systems())


def test_every_folder_is_registered_by_us_or_by_the_host():
    kinds = {model.kind for model in registry()}
    assert kinds <= HOST_KINDS | OTHER_PACKS_KINDS | set(models_download.OUR_KINDS)


def test_packs_from_insightface_are_never_called_free_for_commercial_use():
    packs = [
        m for m in registry() if m.folder.startswith(("insightface/models/buffalo", "insightface/models/antelope"))
    ]
    assert len(packs) == 10
    assert all(model.commercial is False for model in packs)


def test_files_that_are_the_same_bytes_know_each_other():
    by_hash: dict[str, list[ModelFile]] = {}
    for model in registry():
        for digest in model.sha256:
            by_hash.setdefault(digest, []).append(model)
    twins = [models for models in by_hash.values() if len(models) > 1]
    assert len(twins) == 4
    for first, second in twins:
        assert second.within_kind in first.aliases and first.within_kind in second.aliases


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(registry()[0], "name", "other")  # noqa: B010 - the checker would refuse the plain assignment


def test_the_source_is_a_page_a_person_can_open():
    assert named("instantid/ip-adapter").source == "https://huggingface.co/InstantX/InstantID"
    assert named("gfpgan-v1.4").source == "https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.0"
    assert named("yunet").source == "https://github.com/opencv/opencv_zoo"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("sface", ["sface"]),
        ("GFPGANv1.4.pth", ["gfpgan-v1.4"]),
        ("instantid", ["instantid/ip-adapter", "instantid/controlnet"]),
        ("buffalo_l.zip", ["buffalo_l.zip"]),
        ("photomaker-*", ["photomaker-v1", "photomaker-v2"]),
    ],
)
def test_files_are_chosen_by_name_file_name_group_or_wildcard(pattern: str, names: list[str]):
    assert [model.name for model in select(pattern)] == names


def test_a_pack_is_chosen_as_a_whole():
    assert {model.filename for model in select("antelopev2")} >= {"glintr100.onnx", "scrfd_10g_bnkps.onnx"}


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(LikenessError, match="photomaker-v1"):
        select("photomaker_v1")


@pytest.mark.parametrize(
    ("size", "text"), [(231, "231 B"), (44642768, "44.6 MB"), (999_600_000, "1.00 GB"), (2502139136, "2.50 GB")]
)
def test_sizes_are_shown_in_the_hubs_units(size: int, text: str):
    assert models_download.human_size(size) == text


def test_the_documentation_lists_the_current_registry():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert models_download.with_tables(page) == page, (
        "renew it: python -m likeness.models_download --markdown docs/models.md"
    )
    assert all(f"`{model.target}`" in page for model in registry())
