"""Files that a saved graph names and that have gone: our sentence, when the graph is queued, before anything runs."""

from __future__ import annotations

import pytest
from helpers import server as server_module

# Node and input -> a value that is not there, and what the sentence says about it.
GONE = {
    ("LikenessLoadIdentityAdapter", "adapter_file"): ("gone.bin", "models/ipadapter"),
    ("LikenessLoadFaceAnalysis", "model"): ("gone_pack", "insightface"),
    ("LikenessLoadIdentity", "file"): ("gone.safetensors", "save one, or put the file there"),
    ("LikenessLoadEmbeds", "file"): ("gone.ipadpt", "save one, or put the file there"),
    ("LikenessLoadFaceRestorer", "file"): ("gone.pth", "facerestore_models"),
    ("LikenessPortraitDataset", "masks"): ("parsing_gone.pth", "facexlib"),
    ("LikenessPortraitDataset", "folder"): ("gone", "put the photos into a folder there"),
}


@pytest.fixture(params=GONE, ids="-".join)
def gone(request, client):
    """A graph that names what is not there, the node's id, and the words that the sentence must hold."""
    kind, name = request.param
    value, says = GONE[request.param]
    defaults = {
        widget: options[1].get("default", options[1].get("options", [None])[0])
        for widget, options in client.object_info(kind)[kind]["input"]["required"].items()
        if len(options) > 1 and (isinstance(options[0], list) or options[0] in ("COMBO", "STRING", "INT", "FLOAT"))
    }
    graph = {
        "1": {"class_type": kind, "inputs": {**defaults, name: value}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    return graph, f"{name} - ", (value, says)


def test_the_graph_is_refused_in_one_sentence(server, client, gone):
    graph, where, words = gone
    prompts = server.log().count("Prompt executed")
    with pytest.raises(server_module.PromptRefused) as refused:
        client.run(graph)
    [said] = {text.partition(" - ")[2] for text in refused.value.errors["1"]}
    assert all(word in said for word in words) and said.endswith(".") and "\n" not in said
    assert any(where in text for text in refused.value.errors["1"])
    assert "Value not in list" not in str(refused.value)
    assert server.log().count("Prompt executed") == prompts


def test_in_a_graph_whose_other_outputs_run_the_sentence_stands_at_the_node(client, gone):
    graph, _, words = gone
    graph["3"] = {"class_type": "LikenessWeightSchedule", "inputs": schedule()}
    graph["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    run = client.run(graph)
    [said] = {error["details"].partition(" - ")[2] for error in run.node_errors["1"]["errors"]}
    assert all(word in said for word in words)
    assert "1" not in run.executed


def schedule() -> dict:
    inputs = {"weights": "1.0, 0.0", "timing": "linear", "frames": 3, "start_frame": 0, "end_frame": 9999}
    return inputs | {"add_starting_frames": 0, "add_ending_frames": 0, "method": "full batch", "seed": 0}


def test_a_linked_name_is_checked_when_the_node_runs(client):
    graph = {
        "0": {"class_type": "PrimitiveString", "inputs": {"value": "gone_pack"}},
        "1": {"class_type": "LikenessPortraitDataset", "inputs": {}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    }
    required = {"kind": "person", "trigger_word": "ohwx", "class_word": "person", "resolution": 64, "masks": "ellipse"}
    required |= {"framing": "head and shoulders", "unfit": "leave out", "save_as": "", "templates": ""}
    required |= {"smallest_face": 32, "least_sharpness": 0.0, "outlier_threshold": 0.25}
    graph["1"]["inputs"] = {**required, "folder": ["0", 0]}
    with pytest.raises(server_module.RunFailed, match="'gone_pack' was not found") as failed:
        client.run(graph)
    assert failed.value.node_id == "1"
