"""The pack in a real, headless server: it loads, lists its nodes, and its runs end as the client says."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
from pathlib import Path
from urllib.parse import quote

import comfyui
import numpy as np
import pytest
from helpers import server as server_module

from likeness.miniature.comfyui_server import PACK_FOLDER as PACK


def ours(object_info) -> set[str]:
    """The ids of this pack's nodes."""
    return {name for name in object_info if name.startswith("Likeness")}


def test_pack_is_loaded_without_an_error(server):
    log = server.log().partition("got prompt")[0]  # later lines belong to other tests, which make mistakes on purpose
    # The host's own example images are not installed for tests (430 MB), which it regrets in a framed notice.
    frame = r"[^\n]*\*+ ERROR \*+"
    log = re.sub(rf"{frame}\s+comfyui-workflow-templates is not installed.*?{frame}", "", log, flags=re.DOTALL)
    assert re.search(rf"[\d.]+ seconds: .*{PACK}", log)
    for trouble in ("IMPORT FAILED", "Cannot import", "Traceback", "[ERROR]"):
        assert trouble not in log


def test_pack_adds_nothing_heavy_to_the_start(host_nodes):
    # What a start takes is counted, not timed: no package is imported that the host has not imported itself.
    script = (
        "import sys, asyncio; sys.path.insert(0, sys.argv[1])\n"
        "from comfy.cli_args import args; args.cpu = True; import nodes\n"
        "before = set(sys.modules)\n"
        "import likeness; asyncio.run(likeness.comfy_entrypoint().get_node_list())\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    host = Path(host_nodes.__file__).parent
    done = subprocess.run([sys.executable, "-c", script, host], cwd=host, capture_output=True, text=True, check=True)
    heavy = {"cv2", "insightface", "onnxruntime", "diffusers", "peft", "accelerate", "facexlib", "skimage", "pydantic"}
    assert not heavy & set(done.stdout.split())


def test_every_node_of_ours_is_listed_with_its_description(client, object_info):
    names = ours(object_info)
    assert names
    listed = client.object_info()
    assert names <= set(listed)
    for name in names:
        assert listed[name]["category"].startswith("likeness")
        assert listed[name]["description"]


def test_templates_are_served(client):
    names = client.get_json("/workflow_templates")[PACK]
    assert set(names) == {path.stem for path in (comfyui.REPOSITORY / "workflows").glob("*.json")}
    assert "portrait_faceid" in names and not [name for name in names if name.endswith(".api")]
    for name in names:
        assert client.get_json(f"/api/workflow_templates/{PACK}/{quote(name)}.json")


def test_every_node_has_a_chinese_translation(client, object_info):
    translated = client.get_json("/i18n")["zh"]["nodeDefs"]
    for name in ours(object_info):
        assert translated[name]["display_name"]


@pytest.mark.parametrize("page", ["{}.md", "{}/en.md", "{}/zh.md"])
def test_help_pages_are_served_for_every_node(client, object_info, page):
    for name in ours(object_info):
        assert client.get(f"/extensions/{PACK}/docs/{page.format(name)}").strip()


def text_to_image(checkpoint: str, *, steps: int = 2, seed: int = 1, size: int = 64) -> dict:
    def node(kind: str, **inputs):
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node("CLIPTextEncode", text="a portrait", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "5": node(
            "KSampler",
            model=["1", 0],
            seed=seed,
            steps=steps,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="server_test"),
    }


def test_a_run_ends_with_a_picture_and_is_cached_the_second_time(client, small_checkpoint):
    graph = text_to_image(small_checkpoint)
    first = client.run(graph)
    [picture] = client.images(first, "7")
    assert picture.shape == (64, 64, 3) and picture.std() > 1
    assert ("5", 2, 2) in first.progress
    again = client.run(graph)
    assert "5" in again.cached
    assert not np.array_equal(picture, client.images(client.run(text_to_image(small_checkpoint, seed=2)), "7")[0])


def test_a_refused_graph_names_the_node(client, small_checkpoint):
    graph = text_to_image("no_such_file.safetensors")
    with pytest.raises(server_module.PromptRefused) as refused:
        client.run(graph)
    assert "no_such_file" in refused.value.errors["1"][0]


def test_a_node_that_raises_gives_its_message_and_id(client, models):
    name = "not_a_checkpoint.safetensors"
    (models / "checkpoints").mkdir(exist_ok=True)
    (models / "checkpoints" / name).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(server_module.RunFailed, match="Could not detect model type") as failed:
        client.run(text_to_image(name))
    assert (failed.value.node_id, failed.value.node_type) == ("1", "CheckpointLoaderSimple")


def test_a_run_can_be_interrupted(client, small_checkpoint):
    def stop(kind, data):
        if kind == "progress" and data["value"] >= 1:
            client.interrupt()

    with pytest.raises(server_module.RunInterrupted):
        client.run(text_to_image(small_checkpoint, steps=60, seed=3), on_event=stop)


def test_an_unknown_page_is_an_error(client):
    with pytest.raises(urllib.error.HTTPError):
        client.get(f"/extensions/{PACK}/docs/NoSuchNode.md")
