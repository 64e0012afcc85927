"""Texts that no file, log or terminal can hold, in every choice and text of every node, through a real server.

A client that sends one may be refused, in one sentence, or served; the prompt after it always runs, and the log holds
neither the raw text nor a traceback of the logging itself.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import comfyui
import numpy as np
import pytest
import torch
from helpers import server as server_module
from PIL import Image

BAD = {
    "half a character": "\ud800",
    "a byte that is no text": "x\udcffy",
    "NUL": "a\0b",
    "a terminal's command": "a\x1b[31mb",
    "a second line": "a\nforged line",
}
HARMLESS = ("a terminal's command", "a second line")  # as long as they do not reach a log raw
FROZEN = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "frozen_schema").glob("*.json")}
TEXTS = [
    (node, name)
    for node, said in sorted(FROZEN.items())
    for name, given in said["inputs"].items()
    if given["type"] in ("COMBO", "STRING")
    and node != "LikenessEncodeReference"  # needs an image encoder; its one choice is Prepare Reference's
]

SOURCES = {  # socket -> where a graph gets it from
    "MODEL": ["world", 0],
    "CLIP": ["world", 1],
    "VAE": ["world", 2],
    "IMAGE": ["photo", 0],
    "IDENTITY": ["LikenessIdentityFromPhotos", 0],
    "LIKENESS_FACES": ["LikenessFindFaces", 0],
    "LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS": ["LikenessLoadFaceAnalysis", 0],
    "LIKENESS_ADAPTER,IPADAPTER": ["LikenessLoadIdentityAdapter", 0],
    "LIKENESS_EMBEDS": ["LikenessLoadEmbeds", 0],
    "LIKENESS_DATASET": ["LikenessPortraitDataset", 0],
}
VALUES = {  # what is not the default
    "LikenessLoadIdentityAdapter": {"adapter_file": "miniature FaceID (in this pack)"},
    "LikenessLoadFaceAnalysis": {"model": "miniature"},
    "LikenessLoadEmbeds": {"file": "known.safetensors"},
    "LikenessLoadIdentity": {"file": "known.safetensors"},
    "LikenessFindFaces": {"image": ["photo", 0]},
    "LikenessPortraitDataset": {
        "resolution": 128,
        "framing": "largest square",
        "smallest_face": 32,
        "image": ["photo", 0],
        "face_analysis": ["LikenessLoadFaceAnalysis", 0],
    },
    "LikenessApplyReference": {"face_analysis": ["LikenessLoadFaceAnalysis", 0]},
    "LikenessTrainTextualInversion": {"steps": 1, "preview_every": 0},
    "LikenessTrainDreamBooth": {"steps": 1, "preview_every": 0, "class_pictures": 1, "rank": 1},
    "LikenessTrainMagiCapture": {
        "style": ["style", 0],
        "face_analysis": ["LikenessLoadFaceAnalysis", 0],
        "inversion_steps": 1,
        "tuning_steps": 1,
        "preview_every": 0,
        "rank": 1,
    },
}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def graph(running_server):
    """Makes the graph of one node: whatever it needs before it, and a preview of its first output."""
    from likeness.adapters.ip_adapter.embeds import ImageEmbeds, save_embeds

    client = running_server.client
    with Image.open(comfyui.REPOSITORY / "workflows" / "miniature_person.png") as picture:
        client.upload_image("miniature_person.png", np.asarray(picture.convert("RGB")))
    folder = running_server.base / "models" / "likeness_embeds"
    folder.mkdir(parents=True, exist_ok=True)
    save_embeds(folder / "known.safetensors", ImageEmbeds(torch.zeros(1, 8, 4), None, "Plus", "ViT-H"))
    info = client.object_info()
    nodes = {
        "world": {"class_type": "LikenessLoadMiniature", "inputs": {}},
        "photo": {"class_type": "LoadImage", "inputs": {"image": "miniature_person.png"}},
        **{name: {"class_type": name, "inputs": _inputs(name, info[name])} for name in FROZEN},
    }
    style = {**nodes["LikenessPortraitDataset"]["inputs"], "kind": "style", "trigger_word": "mystyle"}
    nodes["style"] = {"class_type": "LikenessPortraitDataset", "inputs": style}

    def of(name: str, /, **changes) -> dict:
        made = {name: {**nodes[name], "inputs": {**nodes[name]["inputs"], **changes}}}
        wanted = [name]
        while wanted:
            for value in made[wanted.pop()]["inputs"].values():
                if isinstance(value, list) and value[0] not in made:
                    made[value[0]] = nodes[value[0]]
                    wanted.append(value[0])
        made["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [name, 0]}}
        return made

    client.run(of("LikenessSaveIdentity", filename="known"))
    return of


def _inputs(name: str, info: dict) -> dict:
    given = VALUES.get(name, {})
    inputs = {}
    for key, (kind, *options) in info["input"].get("required", {}).items():
        if kind in SOURCES:
            inputs[key] = SOURCES[kind]
        else:
            inputs[key] = options[0].get("default", (options[0].get("options") or [None])[0])
    return {**inputs, **given}


@pytest.mark.parametrize(("node", "name"), TEXTS, ids=str)
def test_a_bad_text_is_refused_in_one_sentence_or_served(server, client, graph, node, name):
    before = server.log_file.stat().st_size
    for kind, text in BAD.items():
        if node.startswith("LikenessTrain") and kind in HARMLESS:
            continue  # it would train, which takes long
        try:
            client.run(graph(node, **{name: text}), timeout=60)
        except server_module.PromptRefused as refused:
            said = [text for found in refused.errors.values() for text in found]
            assert said and not [line for line in said if "\n" in line], kind
        except server_module.RunFailed as failed:
            assert failed.exception_type.endswith("LikenessError"), (kind, str(failed).encode("ascii", "replace"))
            assert failed.message.endswith(".") and "\n" not in failed.message, (kind, failed.message)
            assert failed.node_id == node
        run = client.run(graph("LikenessWeightSchedule", frames=next(_numbers)), timeout=60)
        assert "LikenessWeightSchedule" in run.executed
    log = server.log_file.read_bytes()[before:].decode(errors="replace")
    for raw in ("a\x1b[31mb", "\nforged line", "\0", "Logging error", "Exception in thread"):
        assert raw not in log, log[-3000:]


def test_every_node_and_every_text_is_tried(object_info):
    tried = {
        (node, name)
        for node, info in object_info.items()
        if node.startswith("Likeness")
        for group in ("required", "optional")
        for name, (kind, *_) in (info["input"].get(group) or {}).items()
        if kind in ("COMBO", "STRING")
    }
    assert tried - set(TEXTS) == {("LikenessEncodeReference", "crop")}
