"""The machinery that writes and checks workflow files, on the host's own nodes."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.host

CHECKPOINT = "v1-5-pruned-emaonly.safetensors"


@pytest.fixture(scope="module")
def described(graph_tool, object_info):
    graph = graph_tool.Graph(object_info, version="1.2.3", host_version="0.3.64")
    model_file = graph_tool.ModelFile(CHECKPOINT, "https://example.org/sd.safetensors", "checkpoints")
    with graph.group("Model"):
        graph.note("Put the file there.")
        checkpoint = graph.node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT, models=(model_file,))
        photo = graph.node("LoadImage", image="person.png", extra_height=300)
    with graph.group("Prompt"):
        positive = graph.node("CLIPTextEncode", title="Positive", text="a portrait", clip=checkpoint["CLIP"])
        negative = graph.node("CLIPTextEncode", title="Negative", text="blurry", clip=checkpoint["CLIP"])
    steps = graph.node("PrimitiveInt", value=7)
    latent = graph.node("VAEEncode", pixels=photo["IMAGE"], vae=checkpoint["VAE"])
    sampler = graph.node(
        "KSampler",
        model=checkpoint["MODEL"],
        seed=5,
        steps=steps[0],
        positive=positive[0],
        negative=negative[0],
        latent_image=latent["LATENT"],
        denoise=0.5,
    )
    graph.next_column()
    decoded = graph.node("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
    graph.node("SaveImage", images=decoded[0], filename_prefix="likeness")
    return graph


@pytest.fixture
def workflow(described):
    return described.to_ui()


def node_of(workflow, kind):
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def test_a_described_graph_has_no_problems(graph_tool, workflow, object_info):
    assert graph_tool.problems(workflow, object_info) == []


def test_files_are_the_same_whether_or_not_the_host_gives_its_ends_an_output(graph_tool, described, object_info):
    image = object_info["SaveImage"]
    older = {**object_info, "SaveImage": image | {"output": [], "output_name": []}}
    newer = {**object_info, "SaveImage": image | {"output": ["IMAGE"], "output_name": ["images"]}}
    files = []
    for info in (older, newer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(described, "_info", info)
            patch.setattr(next(n for n in described._nodes if n.type == "SaveImage"), "info", info["SaveImage"])
            files.append(described.to_ui())
        assert graph_tool.problems(files[-1], older) == graph_tool.problems(files[-1], newer) == []
    assert files[0] == files[1] and node_of(files[0], "SaveImage")["outputs"] == []


def test_widget_values_follow_the_schema_and_a_seed_carries_its_control(workflow):
    sampler = node_of(workflow, "KSampler")
    assert sampler["widgets_values"] == [5, "fixed", 20, 8.0, "euler", "simple", 0.5]
    assert node_of(workflow, "LoadImage")["widgets_values"] == ["person.png", "image"]


def test_a_linked_widget_becomes_the_last_socket_and_keeps_its_value(workflow):
    sampler = node_of(workflow, "KSampler")
    assert [socket["name"] for socket in sampler["inputs"]] == [
        "model",
        "positive",
        "negative",
        "latent_image",
        "steps",
    ]
    assert sampler["inputs"][-1]["widget"] == {"name": "steps"}
    assert sampler["inputs"][-1]["link"] is not None


def test_the_api_twin_names_values_and_links(graph_tool, workflow, object_info):
    api = graph_tool.to_api(workflow, object_info)
    sampler = next(node for node in api.values() if node["class_type"] == "KSampler")
    steps = str(node_of(workflow, "PrimitiveInt")["id"])
    assert sampler["inputs"]["seed"] == 5
    assert sampler["inputs"]["steps"] == [steps, 0]
    assert "seed.control" not in sampler["inputs"]
    assert {node["class_type"] for node in api.values()}.isdisjoint({"MarkdownNote"})
    assert [n["_meta"]["title"] for n in api.values() if n["class_type"] == "CLIPTextEncode"] == [
        "Positive",
        "Negative",
    ]


def test_the_api_twin_passes_the_hosts_own_validation(graph_tool, workflow, object_info):
    import execution
    import folder_paths

    checkpoints = Path(folder_paths.get_folder_paths("checkpoints")[0])
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / CHECKPOINT).touch()
    Image.new("RGB", (64, 64)).save(Path(folder_paths.get_input_directory()) / "person.png")
    prompt = graph_tool.to_api(workflow, object_info)
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert valid and not node_errors, (error, node_errors)
    assert len(outputs) == 1


def test_writing_twice_gives_the_same_bytes(graph_tool, described, object_info, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = graph_tool.write(described, object_info, tmp_path / "a", "x", "x")
    second = graph_tool.write(described, object_info, tmp_path / "b", "x", "x")
    assert [p.name for p in first] == ["x.json", "x.api.json"]
    assert [p.parent.name for p in first] == ["a", "api"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def _value(kind, index, value):
    def plant(workflow):
        node_of(workflow, kind)["widgets_values"][index] = value

    return plant


def _drop_value(workflow):
    node_of(workflow, "KSampler")["widgets_values"].pop(1)


def _drop_record(workflow):
    node_of(workflow, "VAEDecode")["inputs"][0]["link"] = None


def _wrong_type(workflow):
    target = node_of(workflow, "VAEDecode")
    source = node_of(workflow, "CheckpointLoaderSimple")
    link = next(link for link in workflow["links"] if link[0] == target["inputs"][0]["link"])
    node_of(workflow, "KSampler")["outputs"][0]["links"].remove(link[0])
    source["outputs"][0]["links"].append(link[0])
    link[1], link[2], link[5] = source["id"], 0, "MODEL"


def _overlap(workflow):
    node_of(workflow, "VAEDecode")["pos"] = list(node_of(workflow, "KSampler")["pos"])


def _forget_models(workflow):
    del node_of(workflow, "CheckpointLoaderSimple")["properties"]["models"]


def _unknown_node(workflow):
    node_of(workflow, "SaveImage")["type"] = "NoSuchNode"


FAULTS = {
    "a combo value that is not offered": (_value("KSampler", 4, "no such sampler"), "sampler_name"),
    "a number beyond its range": (_value("KSampler", 6, 1.5), "denoise"),
    "a text where a number belongs": (_value("KSampler", 3, "strong"), "cfg"),
    "a seed that changes by itself": (_value("KSampler", 1, "randomize"), "not fixed"),
    "a forgotten seed control": (_drop_value, "KSampler"),
    "a link that its input does not know": (_drop_record, "the input says"),
    "a link of the wrong type": (_wrong_type, "MODEL is linked into samples"),
    "nodes over each other": (_overlap, "lie over each other"),
    "a loader without its file's address": (_forget_models, "properties.models"),
    "a node the host lacks": (_unknown_node, "NoSuchNode"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported(graph_tool, workflow, object_info, fault):
    plant, expected = FAULTS[fault]
    broken = copy.deepcopy(workflow)
    plant(broken)
    assert any(expected in problem for problem in graph_tool.problems(broken, object_info))


def test_a_description_refuses_inputs_the_host_does_not_know(graph_tool, object_info):
    graph = graph_tool.Graph(object_info, version="1", host_version="0.3.64")
    with pytest.raises(KeyError, match="strenght"):
        graph.node("KSampler", strenght=1)
    with pytest.raises(KeyError, match="NoSuchNode"):
        graph.node("NoSuchNode")
