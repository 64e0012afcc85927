"""What all nodes of the pack have in common: words for everything, and an order that saved workflows rely on."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path

import pytest

INPUTS = {  # in the order of saved workflows, which must never change; new ones go to the end
    "LikenessLoadFaceAnalysis": ["model", "provider"],
    "LikenessFindFaces": ["face_analysis", "choice", "index", "if_none", "min_size", "image", "reference"],
    "LikenessIdentityFromPhotos": ["faces", "name", "outliers", "outlier_threshold"],
    "LikenessSaveIdentity": ["identity", "filename", "place"],
    "LikenessLoadIdentity": ["file"],
    "LikenessCombineIdentities": [
        *("identity_1", "weight_1", "mode", "identity_2", "weight_2"),
        *("identity_3", "weight_3", "identity_4", "weight_4", "name"),
    ],
    "LikenessFaceKeypoints": ["width", "height", "faces"],
}
OUTPUTS = {
    "LikenessLoadFaceAnalysis": ["LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS"],
    "LikenessFindFaces": ["LIKENESS_FACES", "IMAGE", "IMAGE", "MASK", "INT"],
    "LikenessIdentityFromPhotos": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessSaveIdentity": ["STRING"],
    "LikenessLoadIdentity": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessCombineIdentities": ["IDENTITY"],
    "LikenessFaceKeypoints": ["IMAGE", "STRING", "INT", "INT"],
}


@pytest.fixture(scope="module")
def all_schemas(host_nodes):
    from likeness.nodes import LikenessExtension

    classes = asyncio.run(LikenessExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: (node, node.GET_SCHEMA()) for node in classes}


def test_every_node_says_what_it_does_and_every_input_and_output_has_a_tooltip(all_schemas):
    assert set(INPUTS) <= set(all_schemas)
    for node_id, (_, schema) in all_schemas.items():
        assert node_id.startswith("Likeness") and schema.category.startswith("likeness/")
        assert schema.display_name and len(schema.description or "") > 30, node_id
        assert not [widget.id for widget in schema.inputs if len(widget.tooltip or "") < 10], node_id
        assert not [widget.display_name for widget in schema.outputs if not widget.display_name or not widget.tooltip]


def test_nodes_can_be_called_with_all_inputs_and_with_the_required_ones_alone(all_schemas):
    for node, schema in all_schemas.values():
        signature = inspect.signature(node.execute)
        signature.bind(**{widget.id: None for widget in schema.inputs})
        signature.bind(**{widget.id: None for widget in schema.inputs if not widget.optional})


def test_every_combo_has_options_and_its_default_is_one(all_schemas):
    for node_id, (_, schema) in all_schemas.items():
        for widget in schema.inputs:
            if hasattr(widget, "options"):
                assert len(set(widget.options)) == len(widget.options) > 0, (node_id, widget.id)
                assert widget.default is None or widget.default in widget.options, (node_id, widget.id)


def test_inputs_and_outputs_keep_the_order_of_saved_workflows(all_schemas):
    for node_id, inputs in INPUTS.items():
        schema = all_schemas[node_id][1]
        assert [widget.id for widget in schema.inputs][: len(inputs)] == inputs
        assert [widget.get_io_type() for widget in schema.outputs] == OUTPUTS[node_id]
        required_first = sorted(schema.inputs, key=lambda widget: bool(widget.optional))
        assert required_first == schema.inputs, "the host lists required inputs first"


def test_every_node_is_found_by_other_names_and_flags_say_what_is_not_for_everybody(all_schemas):
    import dataclasses

    from comfy_api.latest import io

    known = {field.name for field in dataclasses.fields(io.Schema)}
    if "search_aliases" in known:
        assert not [node_id for node_id, (_, schema) in all_schemas.items() if not schema.search_aliases]
    flagged = {"is_experimental": {"LikenessTrainMagiCapture"}}
    flagged["is_dev_only"] = {"LikenessApplyReference", "LikenessLoadAdapterPreset"}  # for graphs of another pack
    for flag in known & set(flagged):
        assert {node_id for node_id, (_, schema) in all_schemas.items() if getattr(schema, flag)} == flagged[flag]


# --- combos made from files


PLANTED = ["parsing_planted.pth", "planted.safetensors", "planted.bin", "models/planted_pack/det.onnx"]
_listed: list[object] = []  # folders that were listed while `_listening`
_listening: list[bool] = []


def _audit(event: str, arguments: tuple) -> None:
    if _listening and event in ("os.listdir", "os.scandir"):
        _listed.append(arguments[0])


@pytest.fixture(scope="module")
def folder_listings():
    """A list that fills with the folders that anybody lists."""
    sys.addaudithook(_audit)  # stays until the process ends
    _listening.append(True)
    yield _listed
    _listening.clear()


@pytest.fixture
def empty_host(host_nodes, tmp_path, monkeypatch) -> Path:
    """The host with empty folders everywhere; `models/<kind>` for every kind that it knows."""
    import folder_paths

    from likeness import models_download

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    models_download.register_folders()  # as they are, before anything is replaced
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    for kind, (_, suffixes) in list(folder_paths.folder_names_and_paths.items()):
        folder = tmp_path / "models" / kind
        folder.mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder)], suffixes))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def options_of(node) -> dict[str, list[str]]:
    return {widget.id: list(widget.options) for widget in node.define_schema().inputs if hasattr(widget, "options")}


def checked_inputs(node) -> list[str]:
    """What the host hands over to the node before anything runs; read as the host reads it."""
    if not any("validate_inputs" in cls.__dict__ for cls in node.mro()[: node.mro().index(node.GET_BASE_CLASS())]):
        return []
    return inspect.getfullargspec(node.validate_inputs).args[1:]


def plant(base: Path) -> None:
    for folder in [*(base / "models").iterdir(), *(base / "output" / "likeness", base / "output" / "likeness_embeds")]:
        for name in PLANTED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"planted")


def test_every_combo_made_from_files_is_checked_before_anything_runs(all_schemas, empty_host):
    before = {node_id: options_of(node) for node_id, (node, _) in all_schemas.items()}
    plant(empty_host)
    found = set()
    for node_id, (node, _) in all_schemas.items():
        for name, options in options_of(node).items():
            if options == before[node_id][name]:
                continue
            found.add(f"{node_id}.{name}")
            assert name in checked_inputs(node), f"{node_id}.{name} lists files: give the node `must_exist`"
            for choice in sorted({*options} - {*before[node_id][name]}):
                assert node.validate_inputs(**{name: choice}) is True, (node_id, choice)
    assert found == {
        *("LikenessLoadFaceAnalysis.model", "LikenessLoadIdentity.file", "LikenessLoadIdentityAdapter.adapter_file"),
        *("LikenessLoadEmbeds.file", "LikenessPortraitDataset.masks", "LikenessFaceMask.parser"),
        *("LikenessLoadFaceRestorer.file", "LikenessRestoreFaces.paste", "LikenessUpscalePortrait.paste"),
        *("LikenessPasteFacesBack.paste", "LikenessDetailFaces.paste", "LikenessLoadConcept.file"),
        *("LikenessLoadSubject.file", "LikenessReferenceAdapter.lora_name"),
        *("LikenessTrainDreamBooth.start_from", "LikenessTrainMagiCapture.start_from"),
    }


def test_a_node_that_lists_folders_for_its_combos_checks_them(all_schemas, empty_host, folder_listings):
    listing = set()
    for node_id, (node, _) in all_schemas.items():
        folder_listings.clear()
        node.define_schema()
        if folder_listings:
            listing.add(node_id)
            assert checked_inputs(node), f"{node_id} lists {folder_listings[0]}: give the node `must_exist`"
    assert "LikenessLoadEmbeds" in listing


GONE = ["gone.safetensors", "sub/gone.bin", "../gone", "", "x" * 5000, "\0", 7, 1.5, {}, True]


@pytest.mark.parametrize("value", GONE, ids=lambda value: repr(value)[:20])
def test_what_is_not_there_is_one_sentence_and_what_is_linked_passes(all_schemas, empty_host, value):
    for node_id, (node, _) in all_schemas.items():
        for name in checked_inputs(node):
            assert node.validate_inputs(**{name: None}) is True  # linked
            if (name, value) == ("folder", ""):
                assert node.validate_inputs(**{name: value}) is True  # none is wanted
                continue
            said = node.validate_inputs(**{name: value})
            assert isinstance(said, str) and said.endswith(".") and "\n" not in said, (node_id, name, said)
            assert repr(value)[:40].strip("'") in said, (node_id, name, said)


def test_choices_that_stand_for_an_empty_list_say_how_to_fill_it(all_schemas, empty_host):
    for node_id, (node, _) in all_schemas.items():
        options = options_of(node)
        for name in checked_inputs(node):
            if empty := [choice for choice in options.get(name, []) if choice.startswith("(")]:
                said = node.validate_inputs(**{name: empty[0]})
                assert isinstance(said, str) and said.endswith("."), (node_id, name, said)
