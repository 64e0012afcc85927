"""Graphs of IPAdapter_plus, opened where that pack is gone: each node in a graph of its own, as a browser replaces it.

What a browser does with a replacement is repeated here: links go over by name, widget values by their place in the old
node, outputs by number; what is not mapped is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import urllib.error
from dataclasses import dataclass, field
from typing import Any

import comfyui
import numpy as np
import pytest
import torch
from helpers import server as server_module
from PIL import Image

MINIATURE = "miniature FaceID (in this pack)"
DOCUMENT = comfyui.REPOSITORY / "docs" / "from-ipadapter-plus.md"


@dataclass(frozen=True)
class Old:
    """A node of that pack: its sockets and their types, its widgets in order with values of a saved graph, its outputs,
    and the inputs that a replacement may drop."""

    sockets: dict[str, str]
    widgets: dict[str, Any]
    outputs: list[str]
    dropped: set[str] = field(default_factory=set)


USUAL = {"model": "MODEL", "ipadapter": "IPADAPTER", "image": "IMAGE"}
OPTIONAL = {"image_negative": "IMAGE", "attn_mask": "MASK", "clip_vision": "CLIP_VISION"}
FACE = {**USUAL, **OPTIONAL, "insightface": "INSIGHTFACE"}
STYLES = {"model": "MODEL", "ipadapter": "IPADAPTER", "image_style": "IMAGE", "image_composition": "IMAGE", **OPTIONAL}
WINDOW = {"start_at": 0.1, "end_at": 0.9}
SCALING = {"embeds_scaling": "K+V w/ C penalty"}
TYPE, COMBINE = {"weight_type": "weak input"}, {"combine_embeds": "norm average"}
ADVANCED = {"weight": 0.8, **TYPE, **COMBINE, **WINDOW, **SCALING}
BATCH = {"weight": 0.8, **TYPE, **WINDOW, **SCALING}
FACEID = {"weight": 0.8, "weight_faceidv2": 1.5, **TYPE, **COMBINE, **WINDOW, **SCALING}
ENHANCED = {"enhance_tiles": 3, "enhance_ratio": 0.75}
STYLED = {"weight_style": 0.8, "weight_composition": 0.6, "expand_style": True}
ENCODES_AT_ONCE = {"encode_batch_size"}

MAPPED = {
    "IPAdapter": Old(
        {**USUAL, "attn_mask": "MASK"}, {"weight": 0.8, **WINDOW, "weight_type": "prompt is more important"}, ["MODEL"]
    ),
    "IPAdapterAdvanced": Old({**USUAL, **OPTIONAL}, ADVANCED, ["MODEL"]),
    "IPAdapterBatch": Old({**USUAL, **OPTIONAL}, {**BATCH, "encode_batch_size": 4}, ["MODEL"], ENCODES_AT_ONCE),
    "IPAdapterFaceID": Old(FACE, FACEID, ["MODEL", "IMAGE"]),
    "IPAAdapterFaceIDBatch": Old(FACE, FACEID, ["MODEL", "IMAGE"]),
    "IPAdapterStyleComposition": Old(STYLES, {**STYLED, **COMBINE, **WINDOW, **SCALING}, ["MODEL"]),
    "IPAdapterStyleCompositionBatch": Old(STYLES, {**STYLED, **WINDOW, **SCALING}, ["MODEL"]),
    "IPAdapterMS": Old(FACE, {**FACEID, "layer_weights": "3:2.5, 6:1"}, ["MODEL"]),
    "IPAdapterClipVisionEnhancer": Old({**USUAL, **OPTIONAL}, {**ADVANCED, **ENHANCED}, ["MODEL"]),
    "IPAdapterClipVisionEnhancerBatch": Old(
        {**USUAL, **OPTIONAL}, {**BATCH, **ENHANCED, "encode_batch_size": 4}, ["MODEL"], ENCODES_AT_ONCE
    ),
    "IPAdapterTiled": Old(
        {**USUAL, **OPTIONAL},
        {"weight": 0.8, **TYPE, **COMBINE, **WINDOW, "sharpening": 0.25, **SCALING},
        ["MODEL"],  # and tiles and masks, which are dropped
    ),
    **{
        name: Old({**USUAL, **OPTIONAL}, {"weight": 0.8, boost: -0.5, **COMBINE, **WINDOW, **SCALING}, ["MODEL"])
        for name, boost in (
            ("IPAdapterPreciseStyleTransfer", "style_boost"),
            ("IPAdapterPreciseStyleTransferBatch", "style_boost"),
            ("IPAdapterPreciseComposition", "composition_boost"),
            ("IPAdapterPreciseCompositionBatch", "composition_boost"),
        )
    },
    "IPAdapterUnifiedLoader": Old(
        {"model": "MODEL", "ipadapter": "IPADAPTER"},
        {"preset": "PLUS FACE (portraits)"},
        ["MODEL", "IPADAPTER"],
        {"ipadapter"},  # only spares loading twice
    ),
    "IPAdapterUnifiedLoaderFaceID": Old(
        {"model": "MODEL", "ipadapter": "IPADAPTER"},
        {"preset": "FACEID PLUS V2", "lora_strength": 0.5, "provider": "ROCM"},
        ["MODEL", "IPADAPTER"],
        {"ipadapter"},
    ),
    "IPAdapterUnifiedLoaderCommunity": Old(
        {"model": "MODEL", "ipadapter": "IPADAPTER"}, {"preset": "Composition"}, ["MODEL", "IPADAPTER"], {"ipadapter"}
    ),
    "IPAdapterModelLoader": Old({}, {"ipadapter_file": MINIATURE}, ["IPADAPTER"]),
    "IPAdapterInsightFaceLoader": Old({}, {"provider": "ROCM", "model_name": "miniature"}, ["INSIGHTFACE"]),
    "PrepImageForClipVision": Old(
        {"image": "IMAGE"}, {"interpolation": "LANCZOS", "crop_position": "pad", "sharpening": 0.15}, ["IMAGE"]
    ),
    "IPAdapterNoise": Old({"image_optional": "IMAGE"}, {"type": "dissolve", "strength": 0.6, "blur": 3}, ["IMAGE"]),
    "IPAdapterEncoder": Old(
        {"ipadapter": "IPADAPTER", "image": "IMAGE", "mask": "MASK", "clip_vision": "CLIP_VISION"},
        {"weight": 0.7},
        ["EMBEDS"],  # and the negative, which ours carries in the same value
    ),
    "IPAdapterCombineEmbeds": Old(
        {f"embed{number}": "EMBEDS" for number in range(1, 6)}, {"method": "subtract"}, ["EMBEDS"]
    ),
    "IPAdapterSaveEmbeds": Old({"embeds": "EMBEDS"}, {"filename_prefix": "IP_embeds"}, []),
    "IPAdapterLoadEmbeds": Old({}, {"embeds": "known.safetensors"}, ["EMBEDS"]),
}
UNMAPPED = {
    *("IPAdapterFaceIDKolors", "IPAdapterTiledBatch", "IPAdapterEmbeds", "IPAdapterEmbedsBatch", "IPAdapterFromParams"),
    *("IPAdapterWeights", "IPAdapterWeightsFromStrategy", "IPAdapterPromptScheduleFromWeightsStrategy"),
    *("IPAdapterCombineWeights", "IPAdapterRegionalConditioning", "IPAdapterCombineParams"),
}
SOURCES = {  # a node for each type, and its output
    "MODEL": ("LikenessLoadMiniature", 0, {}),
    "CLIP_VISION": ("CLIPVisionLoader", 0, {"clip_name": "encoder.safetensors"}),
    "IPADAPTER": ("LikenessLoadIdentityAdapter", 0, {"adapter_file": MINIATURE}),
    "INSIGHTFACE": ("LikenessLoadFaceAnalysis", 0, {"model": "miniature"}),
    "IMAGE": ("EmptyImage", 0, {}),
    "MASK": ("SolidMask", 0, {}),
    "EMBEDS": ("LikenessLoadEmbeds", 0, {"file": "known.safetensors"}),
}


# --- what a browser does


def ui_graph(kind: str) -> dict[str, Any]:
    """A graph as that pack's users have saved it: the node, something on each socket, and what takes its outputs."""
    old, links, nodes, numbers = MAPPED[kind], [], [], itertools.count(2)
    inputs = []
    for slot, (name, socket) in enumerate(old.sockets.items()):
        source, output, values = SOURCES[socket]
        number = next(numbers)
        nodes.append({"id": number, "type": source, "inputs": [], "values": values})
        links.append([len(links) + 1, number, output, 1, slot, socket])
        inputs.append({"name": name, "type": socket, "link": len(links)})
    nodes.append({"id": 1, "type": kind, "inputs": inputs, "widgets_values": list(old.widgets.values())})
    for slot, socket in enumerate(old.outputs):
        number = next(numbers)
        links.append([len(links) + 1, 1, slot, number, 0, socket])
        nodes.append({"id": number, "type": "PreviewAny", "inputs": [{"name": "source", "link": len(links)}]})
    return {"nodes": nodes, "links": links}


def opened(graph: dict[str, Any], info: dict[str, Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a graph after a browser has replaced what is offered (`/node_replacements`)."""
    places = {}  # old output -> new one, of nodes that were replaced
    prompt = {}
    links = {link[0]: link for link in graph["links"]}
    for node in graph["nodes"]:
        given = {s["name"]: links[s["link"]] for s in node["inputs"] if s["link"] is not None}
        new = offered.get(node["type"])
        if new is None:
            inputs = {**given, **node.get("values", {})}
            prompt[node["id"]] = (node["type"], inputs)
            continue
        inputs = {}
        for entry in new["input_mapping"]:
            if "set_value" in entry:
                inputs[entry["new_id"]] = entry["set_value"]
            elif entry["old_id"] in given:
                inputs[entry["new_id"]] = given[entry["old_id"]]
            elif entry["old_id"] in (new["old_widget_ids"] or []):
                inputs[entry["new_id"]] = node["widgets_values"][new["old_widget_ids"].index(entry["old_id"])]
        prompt[node["id"]] = (new["new_node_id"], inputs)
        places[node["id"]] = {entry["old_idx"]: entry["new_idx"] for entry in new["output_mapping"] or []}
    return {str(number): _api(kind, inputs, info, places) for number, (kind, inputs) in prompt.items()}


def _api(kind: str, inputs: dict[str, Any], info: dict[str, Any], places: dict[int, dict[int, int]]) -> dict[str, Any]:
    named = {}
    for group in ("required", "optional"):
        for name, (socket, *options) in (info[kind]["input"].get(group) or {}).items():
            widget = {**(options[0] if options else {})}
            if isinstance(socket, list) or socket in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"):
                choices = socket if isinstance(socket, list) else widget.get("options")
                named[name] = widget.get("default", choices[0] if choices else None)
    for name, value in inputs.items():
        assert name in {n for group in info[kind]["input"].values() for n in group}, f"{kind} has no input {name}"
        if isinstance(value, list) and len(value) == 6:  # a link
            _, source, slot, *_ = value
            value = [str(source), places.get(source, {}).get(slot, slot)]
        named[name] = value
    return {"class_type": kind, "inputs": named}


@pytest.fixture(scope="module")
def offered(host_nodes) -> dict[str, Any]:
    """What the host is told, or would be, by old name."""
    from likeness.nodes.ipadapter_plus import _declared, _for_browsers, replacements

    class Declaration:
        """As `io.NodeReplace` of the hosts that have it."""

        def __init__(self, new_node_id, old_node_id, old_widget_ids=None, input_mapping=None, output_mapping=None):
            self.new_node_id, self.old_node_id, self.old_widget_ids = new_node_id, old_node_id, old_widget_ids
            self.input_mapping, self.output_mapping = input_mapping, output_mapping

        def as_dict(self):
            names = ("new_node_id", "old_node_id", "old_widget_ids", "input_mapping", "output_mapping")
            return {name: getattr(self, name) for name in names}

    kind = _for_browsers(Declaration)
    return {old: _declared(kind, old, new).as_dict() for old, new in replacements().items()}


@pytest.fixture
def validate(host_nodes, object_info, tmp_path, monkeypatch):
    """Ask the host's own validation what it thinks of a prompt."""
    import execution
    import folder_paths

    from likeness.adapters.ip_adapter.embeds import ImageEmbeds, write_embeds
    from likeness.nodes import LikenessExtension, references

    for node in asyncio.run(LikenessExtension().get_node_list()):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    (tmp_path / "encoder.safetensors").touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    embeds = references.EMBEDS.folders()[-1]
    embeds.mkdir()
    write_embeds(ImageEmbeds(torch.zeros(1, 8, 4), None, "Plus", "ViT-H"), embeds / "known.safetensors")

    def ask(prompt):
        valid, error, outputs, errors = asyncio.run(execution.validate_prompt("id", prompt, None))
        assert valid and not errors, (error, errors)
        return outputs

    return ask


# --- each node


@pytest.mark.parametrize("kind", MAPPED)
def test_a_graph_of_the_old_node_opens_as_a_valid_graph_of_ours(kind, offered, object_info, validate):
    graph, old = ui_graph(kind), MAPPED[kind]
    prompt = opened(graph, object_info, offered)
    outputs = validate(prompt)
    assert len(outputs) == max(1, len(old.outputs))
    new = prompt["1"]
    assert new["class_type"].startswith("Likeness")
    used = {entry["old_id"] for entry in offered[kind]["input_mapping"] if "old_id" in entry}
    assert used >= {*old.sockets, *old.widgets} - old.dropped, "an input of the old node is dropped"
    assert offered[kind]["old_widget_ids"] == list(old.widgets)


@pytest.mark.parametrize("kind", MAPPED)
def test_every_value_of_the_old_node_arrives_where_it_belongs(kind, offered, object_info):
    prompt, old = opened(ui_graph(kind), object_info, offered), MAPPED[kind]
    names = {entry["old_id"]: entry["new_id"] for entry in offered[kind]["input_mapping"] if "old_id" in entry}
    for widget, value in old.widgets.items():
        if widget not in old.dropped:
            assert prompt["1"]["inputs"][names[widget]] == value
    set_to = {entry["new_id"]: entry["set_value"] for entry in offered[kind]["input_mapping"] if "set_value" in entry}
    assert set_to.get("unfold_batch", False) == kind.endswith("Batch")
    assert set_to.get("tiled", False) == (kind == "IPAdapterTiled")
    if "Precise" in kind:
        assert set_to["own_boost"] and set_to["weight_type"].endswith("precise")


def test_what_has_no_replacement_is_said_in_the_document(offered):
    assert set(offered) == set(MAPPED) and not set(offered) & UNMAPPED
    text = DOCUMENT.read_text(encoding="utf-8")
    part = text[text.index("## Opening a graph where that pack is not installed") :]
    for kind in {*MAPPED, *UNMAPPED}:
        assert f"`{kind}`" in part, kind


def test_words_of_the_old_combos_are_choices_here(offered, object_info):
    """All of them, not only those of the graphs above."""
    from likeness.nodes.choices import member
    from likeness.nodes.references import CombineMode, EmbedsScaling, Resampling

    words = [
        *("linear", "ease in", "ease out", "ease in-out", "reverse in-out", "weak input", "weak output"),
        *("weak middle", "strong middle", "style transfer", "composition", "strong style transfer"),
        *("style and composition", "style transfer precise", "composition precise"),
        *("standard", "prompt is more important"),
    ]
    options = object_info["LikenessApplyReference"]["input"]["required"]["weight_type"][1]["options"]
    assert set(words) <= set(options)
    for word in ("concat", "add", "subtract", "average", "norm average", "max", "min"):
        member(CombineMode, word, "method")
    for word in ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"):
        member(EmbedsScaling, word, "embeds_scaling")
    for word in ("LANCZOS", "BICUBIC", "BILINEAR", "NEAREST"):
        member(Resampling, word, "interpolation")


# --- a real server


def test_hosts_that_know_replacements_are_told_and_others_stay_silent(server, client, offered):
    from comfy_api.latest import io

    assert "Replacements for IPAdapter_plus could not be registered" not in server.log()
    if not hasattr(io, "NodeReplace"):
        with pytest.raises(urllib.error.HTTPError):
            client.get("/node_replacements")
        return
    listed = client.get_json("/node_replacements")
    for old, new in offered.items():
        assert listed[old] == [{**new, "output_mapping": new["output_mapping"] or None}]


@pytest.mark.parametrize("inputs", [{}, {"weight": 1.0, "image": ["2", 0]}])
def test_an_api_prompt_with_an_old_node_is_refused_by_its_name(client, inputs):
    # The server's own replacing would end in a KeyError, HTTP 500, for every input that is not given.
    graph = {
        "1": {"class_type": "IPAdapterAdvanced", "inputs": inputs, "_meta": {"title": "IPAdapter Advanced"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises(server_module.PromptRefused, match=r"IPAdapter ?Advanced"):
        client.run(graph)


def test_a_replaced_faceid_graph_paints_what_our_own_nodes_paint(server, client, offered):
    with Image.open(comfyui.REPOSITORY / "workflows" / "miniature_person.png") as picture:
        client.upload_image("miniature_person.png", np.asarray(picture.convert("RGB")))
    info = client.object_info()
    links = [
        [1, 10, 0, 1, 0, "MODEL"],
        [2, 11, 0, 1, 1, "IPADAPTER"],
        [3, 12, 0, 1, 2, "IMAGE"],
        [4, 13, 0, 1, 3, "INSIGHTFACE"],
        [5, 1, 0, 20, 0, "MODEL"],
        [6, 1, 1, 30, 0, "IMAGE"],
        *([7, 10, 1, 21, 0, "CLIP"], [8, 10, 1, 22, 0, "CLIP"], [9, 21, 0, 20, 1, "CONDITIONING"]),
        *([10, 22, 0, 20, 2, "CONDITIONING"], [11, 23, 0, 20, 3, "LATENT"], [12, 20, 0, 24, 0, "LATENT"]),
        *([13, 10, 2, 24, 1, "VAE"], [14, 24, 0, 31, 0, "IMAGE"]),
    ]

    def socket(name, link):
        return {"name": name, "link": link}

    sampling = {"seed": 1, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    nodes = [
        {"id": 10, "type": "LikenessLoadMiniature", "inputs": []},
        {"id": 11, "type": "IPAdapterModelLoader", "inputs": [], "widgets_values": [MINIATURE]},
        {"id": 12, "type": "LoadImage", "inputs": [], "values": {"image": "miniature_person.png"}},
        {"id": 13, "type": "IPAdapterInsightFaceLoader", "inputs": [], "widgets_values": ["CPU", "miniature"]},
        {
            "id": 1,
            "type": "IPAdapterFaceID",
            "inputs": [socket("model", 1), socket("ipadapter", 2), socket("image", 3), socket("insightface", 4)],
            "widgets_values": [1.0, 1.0, "linear", "concat", 0, 1, "V only"],
        },
        {
            "id": 20,
            "type": "KSampler",
            "inputs": [
                *(socket("model", 5), socket("positive", 9), socket("negative", 10), socket("latent_image", 11)),
            ],
            "values": sampling,
        },
        {"id": 21, "type": "CLIPTextEncode", "inputs": [socket("clip", 7)], "values": {"text": "a photo of a person"}},
        {"id": 22, "type": "CLIPTextEncode", "inputs": [socket("clip", 8)], "values": {"text": ""}},
        {"id": 23, "type": "EmptyLatentImage", "inputs": [], "values": {"width": 128, "height": 128, "batch_size": 1}},
        {"id": 24, "type": "VAEDecode", "inputs": [socket("samples", 12), socket("vae", 13)]},
        {"id": 30, "type": "PreviewImage", "inputs": [socket("images", 6)]},
        {"id": 31, "type": "PreviewImage", "inputs": [socket("images", 14)]},
    ]
    prompt = opened({"nodes": nodes, "links": links}, info, offered)
    run = client.run(prompt)
    [painted], [face] = client.images(run, "31"), client.images(run, "30")
    ours = {key: dict(node, inputs=dict(node["inputs"])) for key, node in prompt.items() if key not in ("1", "30")}
    ours["40"] = _node("LikenessFindFaces", face_analysis=["13", 0], image=["12", 0], choice="highest score")
    ours["40"]["inputs"] |= {"index": 0, "if_none": "error", "min_size": 16}
    ours["41"] = _node("LikenessIdentityFromPhotos", faces=["40", 0], name="anna", outliers="keep")
    ours["41"]["inputs"]["outlier_threshold"] = -1.0
    ours["42"] = _node("LikenessApplyIdentity", model=["10", 0], adapter=["11", 0], identity=["41", 0], weight=1.0)
    ours["42"]["inputs"] |= {"start_at": 0.0, "end_at": 1.0, "lora_strength": 0.0}
    ours["20"]["inputs"]["model"] = ["42", 0]
    [expected] = client.images(client.run(ours), "31")
    ours["20"]["inputs"]["model"] = ["10", 0]
    [nobody] = client.images(client.run(ours), "31")
    assert np.array_equal(painted, expected) and not np.array_equal(painted, nobody)
    assert face.shape == (512, 512, 3) and face.std() > 3


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
