"""The nodes around faces as a graph, in the host's own executor."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from helpers.by_colour import BUILT_IN


class _Server:
    """What the executor needs of the server: somebody to send messages to."""

    client_id, last_node_id, sockets_metadata = "test", None, {}

    def __init__(self):
        self.messages = []

    def send_sync(self, event, data, sid=None):
        self.messages.append((event, data))


@pytest.fixture
def execute(host_nodes, nodes, monkeypatch):
    """Validate and run a graph in the host's own executor: its messages and the history's outputs."""
    import execution

    if "PreviewAny" not in host_nodes.NODE_CLASS_MAPPINGS:  # those of comfy_extras/ do not come with the import
        asyncio.run(host_nodes.init_builtin_extra_nodes())
    # Hosts with a cache that gives way to RAM pressure read its limits whichever cache is chosen; 0 never evicts.
    limits = "cache_args" in inspect.signature(execution.PromptExecutor).parameters
    cache = {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}} if limits else {}
    for node_id, node in nodes.items():
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, node_id, node)

    def run_graph(graph):
        server = _Server()
        executor = execution.PromptExecutor(server, **cache)
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("id", graph, None))
        assert valid, (error, node_errors)
        executor.execute(graph, "id", {"client_id": "test"}, outputs)
        return server.messages, executor.history_result["outputs"] if executor.success else None

    return run_graph


def _node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_a_graph_goes_from_a_photo_to_a_file_and_back(execute, run, places, photos, monkeypatch, tmp_path):
    import folder_paths
    from PIL import Image

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    Image.fromarray(photos["astronaut"]).save(tmp_path / "photo.png")
    graph = {
        "1": _node("LoadImage", image="photo.png"),
        "2": _node("LikenessLoadFaceAnalysis", model=BUILT_IN[2], provider="auto"),
        "3": _node(
            "LikenessFindFaces",
            face_analysis=["2", 0],
            image=["1", 0],
            choice="largest",
            index=0,
            if_none="error",
            min_size=32,
        ),
        "4": _node(
            "LikenessIdentityFromPhotos", faces=["3", 0], name="Eileen", outliers="leave out", outlier_threshold=0.25
        ),
        "5": _node("LikenessCombineIdentities", identity_1=["4", 0], weight_1=1.0, mode="same person"),
        "6": _node("LikenessSaveIdentity", identity=["5", 0], filename="eileen"),
    }
    _, outputs = execute(graph)
    assert outputs is not None and outputs["6"]["text"] == ["eileen.safetensors"]
    assert run("LoadIdentity", file="eileen.safetensors")[0].name == "Eileen"


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (_node("LikenessLoadFaceAnalysis", model="antelopev2", provider="auto"), "likeness models get antelopev2"),
        (_node("LikenessLoadIdentity", file="bob.safetensors"), "'bob.safetensors' was not found"),
    ],
)
def test_a_file_that_only_the_author_of_a_workflow_has_gives_our_sentence(execute, places, loader, words):
    import execution

    graph = {"1": loader, "2": _node("PreviewAny", source=["1", 0])}
    valid, _, _, node_errors = asyncio.run(execution.validate_prompt("id", graph, None))
    assert not valid
    assert all(words in error["details"] for error in node_errors["1"]["errors"])
