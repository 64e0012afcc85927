"""Every input of every registered node with values that no input of its kind should have: it works, or says one
sentence. A new node is in this test by being registered; a new socket needs a good value below.

Values are handed over as a link hands them over, past the widgets' ranges, which the host itself holds.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bad_values
import pytest
import torch
from helpers import by_colour, datasets, photomaker, restorers, small_world
from helpers.concepts import concept
from safetensors.torch import save_file

from likeness.adapters.sefi_ide.file import Subject, subject_metadata, subject_tensors
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.restoration.spandrel_files import described

HERE = Path(__file__).parent

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1e-300, 1e38, 10**18, -(10**18), 10**400, 2.5, "1.0", "", [1])
TEXTS = (*bad_values.NAMES, 3, None, ["x"], "x" * 10_000, "{", "{0}", "%s", "<x>", "\u202e", "1e38", "0:nan")


def pictures() -> dict[str, Any]:
    ones = torch.ones(2, 64, 60, 3)
    return {
        "empty batch": ones[:0],
        "no height": ones[:, :0],
        "NaN": ones * math.nan,
        "one NaN": torch.where(torch.arange(3) == 1, math.nan, ones),
        "infinite": ones * math.inf,
        "out of range": ones * 1000 - 5000,
        "one pixel": ones[:1, :1, :1],
        "one row": torch.rand(1, 1, 3000, 3),
        "very high": torch.rand(1, 3000, 2, 3),
        "all transparent": torch.cat([ones, torch.zeros(2, 64, 60, 1)], -1),
        "grey": ones[..., :1],
        "two channels": ones[..., :2],
        "five channels": ones.repeat(1, 1, 1, 2)[..., :5],
        "half precision": ones.half(),
        "bytes": ones.to(torch.uint8),
        "no batch": ones[0],
        "flat": ones[0, 0, 0],
        "many": ones[:1].expand(9, -1, -1, -1),
        "a list": [1.0],
    }


def masks() -> dict[str, Any]:
    ones = torch.ones(1, 64, 60)
    return {
        "Load Image's empty one": torch.zeros(1, 64, 64),
        "no pixel": ones[:0],
        "NaN": ones * math.nan,
        "infinite": ones * math.inf,
        "negative": -ones,
        "another size": torch.ones(1, 7, 300),
        "one pixel": ones[:, :1, :1],
        "three": ones.repeat(3, 1, 1),
        "no batch": ones[0],
        "a picture": ones[..., None].repeat(1, 1, 1, 3),
        "bytes": ones.to(torch.uint8) * 255,
        "half precision": ones.half(),
        "a list": [1.0],
    }


def identities(good: Identity) -> dict[str, Any]:
    without = replace(good, recogniser=None, embeddings=torch.zeros(len(good), 0))
    nan = replace(good, embeddings=good.embeddings.clone())
    nan.embeddings[0, 0] = math.nan  # behind its back
    return {
        "NaN": nan,
        "no embedding": without,
        "another recogniser": replace(good, recogniser="x\ud800"),
        "another width": replace(good, embeddings=torch.ones(len(good), 3)),
        "boxes only": replace(
            good, aligned=good.aligned[:0], portraits=good.portraits[:0], keypoints=good.keypoints[:0]
        ),
        "a photo left out": replace(good, kept=(False,) + (True,) * len(good)),
        "hostile name": replace(good, name="a\ud800\n\0" + "x" * 1000),
        "a tensor": good.embeddings,
    }


class Begun(BaseException):
    """A training has asked the host for memory: everything that was chosen has been found good."""


class Bench:
    """The registered nodes, good values for all of their inputs, and the host's folders to themselves."""

    def __init__(self, recipes: Any, base: Path) -> None:
        from likeness.nodes import LikenessExtension

        self.base, self.outside = base, base.parents[2]
        self.nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(LikenessExtension().get_node_list())}
        self.small = small_world
        self.colour = by_colour
        world = self.small.World(recipes, base / "models")
        self.person, self.picture = self.small.person(2), self.colour.coloured(self.colour.RED, self.colour.DARK_RED)
        restorer = described(restorers.restoreformer(), "x")
        restorer.model.forward = lambda faces: (faces,)  # fast: what it makes of a face is not asked here
        judged = self.run("LikenessFindFaces", face_analysis=self.colour.BY_COLOUR, image=self.picture)
        adapter = world.adapter("plus")
        self.of_type: dict[str, Any] = {
            "MODEL": world.model,
            "CLIP": recipes.tiny_clip(),
            "VAE": recipes.tiny_vae(),
            "CLIP_VISION": world.clip_vision,
            "CONDITIONING": world.text[0],
            "CONTROL_NET": recipes.controlnet(recipes.SD15_TINY),
            "SIGMAS": torch.linspace(14.0, 0.0, 5),
            "LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
            "IMAGE": self.picture,
            "MASK": torch.ones(1, 64, 60),
            "MASK,IMAGE": torch.ones(1, 64, 60),
            "IDENTITY": self.person,
            "LIKENESS_FACES": judged[0],
            "LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS": self.colour.BY_COLOUR,
            "LIKENESS_ADAPTER,IPADAPTER": adapter,
            "LIKENESS_ADAPTER_OPTIONS": world.options(),
            "LIKENESS_EMBEDS": self.small.encoded(world),
            "LIKENESS_DATASET": datasets.dataset(),
            "LIKENESS_RESTORER,FACERESTORE_MODEL,UPSCALE_MODEL": restorer,
            "UPSCALE_MODEL": described(restorers.esrgan(scale=1), "x"),
            "LIKENESS_CONCEPT": concept(world.model),
            "LIKENESS_SUBJECT": Subject("<ohwx>", "person", {"clip_l": torch.randn(5, 2, 64)}),
        }
        file = base / "models" / "facerestore_models" / "GFPGANv1.4.pth"
        torch.save(restorers.gfpgan(), file)
        self.run("LikenessSaveIdentity", identity=self.person, filename="good")
        self.run("LikenessSaveEmbeds", embeds=self.of_type["LIKENESS_EMBEDS"], filename="good")
        learned = self.of_type["LIKENESS_CONCEPT"]
        concept_file = self.run("LikenessSaveConcept", concept=learned, filename="good", format="safetensors")[0]
        subject = self.of_type["LIKENESS_SUBJECT"]
        path = base / "models" / "sefi_ide" / "good.safetensors"
        save_file(subject_tensors(subject), path, subject_metadata(subject))
        patched, _ = world.apply(adapter, self.person, clip_vision=world.clip_vision)
        small = {"resolution": 64, "smallest_face": 0, "least_sharpness": 0.0}
        quick = {"preview_every": 0}
        self.of_node: dict[str, dict[str, Any]] = {
            "LikenessLoadFaceAnalysis": {"model": "LBP cascade (boxes only)"},
            "LikenessLoadIdentity": {"file": "good.safetensors"},
            "LikenessLoadEmbeds": {"file": "good.safetensors"},
            "LikenessLoadIdentityAdapter": {"adapter_file": world.file("plus")},
            "LikenessApplyIdentity": {"identity": self.person, "clip_vision": world.clip_vision},
            "LikenessIdentityPrompt": {"adapter": self.photomaker(world), "identity": self.person},
            "LikenessScaleIdentities": {"model": patched},
            "LikenessIdentityControlNet": {
                "adapter": world.adapter("instantid"),
                "identity": replace(self.person, recogniser="antelopev2"),
            },
            "LikenessFaceKeypoints": {"faces": judged[0]},
            "LikenessLoadFaceRestorer": {"file": file.name},
            "LikenessRestoreFaces": {"identity_guard": 0.0},
            "LikenessUpscalePortrait": {"scale_by": 1.0},
            "LikenessPasteFacesBack": {"crops": judged[2]},
            "LikenessDetailFaces": {"resolution": 64, "steps": 1, "positive": world.text[0], "negative": world.text[0]},
            "LikenessStoryMakerCharacter": {
                "image": torch.rand(1, 64, 60, 3),
                "mask": torch.nn.functional.pad(torch.ones(1, 40, 40), (10, 10, 12, 12)),
                "identity": self.person,
            },
            "LikenessPortraitDataset": {
                "image": self.picture,
                "face_analysis": self.colour.BY_COLOUR,
                **small,
            },
            "LikenessLoadConcept": {"file": concept_file},
            "LikenessLoadSubject": {"file": path.name},
            "LikenessMergeConcepts": {"concept_2": concept(world.model, "<new2>"), "captions": "a dog\na cat"},
            "LikenessTrainMagiCapture": {"style": datasets.STYLE, **quick},
            "LikenessTrainDreamBooth": quick,
            "LikenessTrainTextualInversion": quick,
            "LikenessTrainCustomDiffusion": quick,
            "LikenessTrainSeFiIDE": quick,
            "LikenessIdentityReport": {"judge": self.colour.BY_COLOUR, "identity": self.by_colour(judged[0])},
            "LikenessKeepBestLikeness": {"judge": self.colour.BY_COLOUR, "identity": self.by_colour(judged[0])},
        }

    def photomaker(self, world: Any) -> Any:
        """An adapter that works through the prompt."""
        save_file(photomaker.weights(world.shapes), world.folder / "ipadapter" / "photomaker.safetensors")
        return self.run("LikenessLoadIdentityAdapter", adapter_file="photomaker.safetensors")[0]

    def by_colour(self, faces: Any) -> Identity:
        """A person whom the judge by colour knows, from another recogniser of the same eyes."""
        identity = self.run("LikenessIdentityFromPhotos", faces=faces)[0]
        return replace(identity, recogniser="conditioner")

    def good(self, node_id: str) -> dict[str, Any]:
        """A value for every input that the node needs, and the widgets' defaults."""
        given = {}
        for widget in self.nodes[node_id].GET_SCHEMA().inputs:
            if getattr(widget, "default", None) is not None:
                given[widget.id] = widget.default
            elif widget.get_io_type() == "COMBO":
                given[widget.id] = widget.options[0]
            elif not widget.optional and widget.id not in self.of_node.get(node_id, {}):
                given[widget.id] = self.of_type[widget.get_io_type()]
        return given | self.of_node.get(node_id, {})

    def run(self, node_id: str, **inputs: Any) -> tuple:
        with torch.inference_mode():
            return self.nodes[node_id].execute(**inputs).result


@pytest.fixture(scope="module")
def bench(recipes, tmp_path_factory):
    import comfy.model_management
    import folder_paths

    from likeness.models_download import register_folders

    register_folders()  # before anything is moved, so that nothing of here stays registered
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("outside") / "a" / "b" / "comfy"
        base.mkdir(parents=True)
        patch.setenv("HOME", str(base / "home"))
        patch.setattr(folder_paths, "models_dir", str(base / "models"))
        for kind in ("input", "output", "temp"):
            (base / kind).mkdir()
            patch.setattr(folder_paths, f"{kind}_directory", str(base / kind))
        for kind, (_, suffixes) in list(folder_paths.folder_names_and_paths.items()):
            (base / "models" / kind).mkdir(parents=True, exist_ok=True)
            patch.setitem(folder_paths.folder_names_and_paths, kind, ([str(base / "models" / kind)], suffixes))
        folder_paths.filename_list_cache.clear()
        patch.chdir(base.parent)

        def begin() -> None:
            raise Begun

        made = Bench(recipes, base)
        gc.freeze()  # as in `host_nodes`
        patch.setattr(comfy.model_management, "unload_all_models", begin)
        yield made
    folder_paths.filename_list_cache.clear()


def values_for(bench: Bench, widget: Any) -> dict[str, Any]:
    """Bad values of the input's kind, by name."""
    kind = widget.get_io_type()
    if kind in ("FLOAT", "INT"):
        return {repr(value)[:30]: value for value in NUMBERS}
    if kind in ("STRING", "COMBO"):
        return {ascii(value)[:30]: value for value in TEXTS}
    if kind == "IDENTITY":
        return identities(bench.person)
    if kind in ("IMAGE", "MASK"):
        return pictures() if kind == "IMAGE" else masks()
    if kind == "MASK,IMAGE":
        return pictures() | masks()
    return {"a number": 3.0, "a text": "x"} if "LIKENESS" in kind else {}


def fault(call: Callable[..., Any], **inputs: Any) -> str | None:
    """What is wrong with an answer that is neither a result nor one sentence."""
    try:
        call(**inputs)
    except Begun:
        return None
    except LikenessError as error:
        text = str(error)
        return f"no sentence: {text[:200]!r}" if UNPRINTABLE.search(text) or not text.endswith(".") else None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:150]} ({Path(where.filename).name}:{where.lineno})"
    return None


def questions(bench: Bench, node_id: str) -> dict[str, Callable[..., Any]]:
    """What the host asks a node, by name, each with the inputs that it hands over: those that the signature names."""
    node = bench.nodes[node_id]
    asked: dict[str, Callable[..., Any]] = {"execute": lambda **inputs: bench.run(node_id, **inputs)}
    for name in ("validate_inputs", "fingerprint_inputs"):
        if name in node.__dict__:
            asked[name] = partial(_with_those_it_names, getattr(node, name))
    return asked


def _with_those_it_names(call: Callable[..., Any], **inputs: Any) -> Any:
    parameters = inspect.signature(call).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return call(**{name: value for name, value in inputs.items() if takes_all or name in parameters})


@pytest.mark.timeout(900)
def test_every_input_of_every_node_takes_bad_values_well(bench):
    faults = []
    for node_id, node in bench.nodes.items():
        good, asked = bench.good(node_id), questions(bench, node_id)
        assert {name: fault(call, **good) for name, call in asked.items()} == dict.fromkeys(asked), node_id
        for widget in node.GET_SCHEMA().inputs:
            for name, value in values_for(bench, widget).items():
                found = {what: fault(call, **good | {widget.id: value}) for what, call in asked.items()}
                faults += [f"{node_id}.{widget.id} = {name}: {what}: {why}" for what, why in found.items() if why]
    assert not faults, "\n".join(faults)
    way = {bench.base, *bench.base.parents}
    assert [p for p in bench.outside.rglob("*") if p not in way and bench.base not in p.parents] == []
    assert not list(Path("/").glob("abs*")) and Path.cwd() == bench.base.parent


def test_every_socket_of_a_node_has_a_good_value_here(bench):
    """A node with a new socket is not skipped in silence."""
    sockets = {widget.get_io_type() for node in bench.nodes.values() for widget in node.GET_SCHEMA().inputs}
    assert sockets - {"FLOAT", "INT", "STRING", "COMBO", "BOOLEAN"} <= set(bench.of_type)
