"""What the pack offers as single nodes: its usual graphs, without loading and saving."""

from __future__ import annotations

from dataclasses import dataclass

from _blueprint import Blueprint
from _graph import Node, Output
from _pieces import (
    SDXL,
    SIDES,
    Start,
    apply_each,
    files,
    find_person,
    halves,
    load_adapter,
    load_analysis,
    prompt,
    sample,
)

ADAPTER, PACK = "ip-adapter-faceid_sdxl", "buffalo_l"
CATEGORY = "Likeness"


@dataclass(frozen=True)
class _Checkpoint:
    """What a checkpoint loader gives, over three sockets."""

    model: Output
    clip: Output
    vae: Output


def _checkpoint(blueprint: Blueprint) -> _Checkpoint:
    return _Checkpoint(*(blueprint.takes(kind.lower(), kind) for kind in ("MODEL", "CLIP", "VAE")))


def _method(blueprint: Blueprint) -> tuple[Node, Node]:
    """Face analysis and adapter, which the user chooses."""
    analysis = load_analysis(blueprint, PACK, blueprint.asks("face_analysis", "COMBO", PACK, "face analysis"))
    file = blueprint.asks("adapter_file", "COMBO", files(ADAPTER)[0].name, "adapter")
    return analysis, load_adapter(blueprint, ADAPTER, file)


def _start(blueprint: Blueprint, checkpoint: _Checkpoint, number: int, text: Output, width: int, height: int) -> Start:
    negative = blueprint.asks("negative_text", "STRING", SDXL.negative, "negative prompt")
    size = (blueprint.asks("width", "INT", width), blueprint.asks("height", "INT", height))
    return prompt(blueprint, number, SDXL, checkpoint.clip, text, size=size, negative=negative)


def _paint(blueprint: Blueprint, title: str, vae: Output, model: Output, start: Start) -> Node:
    asked = {
        "steps": blueprint.asks("steps", "INT", SDXL.steps),
        "cfg": blueprint.asks("cfg", "FLOAT", SDXL.cfg),
        "seed": blueprint.asks("seed", "INT", 1),
    }
    with blueprint.group(title):
        return sample(blueprint, SDXL, vae, model, start, **asked)


def portrait_of_a_person(blueprint: Blueprint) -> None:
    """One or more photos of a person and a prompt to a portrait."""
    blueprint.essentials = "Image Generation"
    photos, checkpoint = blueprint.takes("photos", "IMAGE"), _checkpoint(blueprint)
    text = blueprint.asks("text", "STRING", "portrait photo of a person, natural light", "prompt")
    strength = blueprint.asks("weight", "FLOAT", 1.0, "strength")
    with blueprint.group("1. The person"):
        analysis, adapter = _method(blueprint)
        blueprint.next_column()
        faces, identity = find_person(blueprint, analysis, photos)
    with blueprint.group("2. The method"):
        applied = blueprint.node(
            "LikenessApplyIdentity",
            model=checkpoint.model,
            adapter=adapter["adapter"],
            identity=identity["identity"],
            weight=strength,
        )
    start = _start(blueprint, checkpoint, 3, text, SDXL.side, SDXL.side)
    pictures = _paint(blueprint, "4. Portrait", checkpoint.vae, applied["model"], start)
    blueprint.gives("portrait", pictures[0])
    blueprint.gives("faces found", faces["preview"])
    blueprint.gives("report", applied["report"])


def two_people(blueprint: Blueprint) -> None:
    """Two people side by side, each from photos of their own, in one image."""
    photos = [blueprint.takes(f"photos {side}", "IMAGE") for side in SIDES]
    checkpoint = _checkpoint(blueprint)
    text = blueprint.asks(
        "text", "STRING", "photo of two people standing side by side in a garden, upper body, soft light", "prompt"
    )
    strength = blueprint.asks("weight", "FLOAT", 1.0, "strength")
    width, height, seam = 1216, 832, 96
    with blueprint.group("1. The two people"):
        analysis, adapter = _method(blueprint)
        blueprint.next_column()
        found = [find_person(blueprint, analysis, photo, name=side) for photo, side in zip(photos, SIDES, strict=True)]
    with blueprint.group("2. Where they stand"):
        masks = halves(blueprint, width, height, seam)
    with blueprint.group("3. The method"):
        people = [identity for _, identity in found]
        model = apply_each(blueprint, checkpoint.model, adapter, people, masks, weight=strength)
    start = _start(blueprint, checkpoint, 4, text, width, height)
    pictures = _paint(blueprint, "5. Image", checkpoint.vae, model, start)
    blueprint.gives("picture", pictures[0])


def train_and_paint(blueprint: Blueprint) -> None:
    """A person learned from photos by a LoRA, and a portrait with it."""
    photos, checkpoint = blueprint.takes("photos", "IMAGE"), _checkpoint(blueprint)
    text = blueprint.asks("text", "STRING", "a photo of ohwx person in the snow", "prompt")
    asked = {
        "trigger_word": blueprint.asks("trigger_word", "STRING", "ohwx", "trigger word"),
        "class_word": blueprint.asks("class_word", "STRING", "person", "class word"),
        "resolution": blueprint.asks("resolution", "INT", SDXL.side),
    }
    trained_by = {
        "name": blueprint.asks("name", "STRING", "", "name of the files"),
        "steps": blueprint.asks("training_steps", "INT", 500, "training steps"),
        "learning_rate": blueprint.asks("learning_rate", "FLOAT", 1e-4, "learning rate"),
        "class_pictures": blueprint.asks("class_pictures", "INT", 50, "class images"),
    }
    with blueprint.group("1. The person"):
        analysis = load_analysis(blueprint, PACK, blueprint.asks("face_analysis", "COMBO", PACK, "face analysis"))
        dataset = blueprint.node("LikenessPortraitDataset", image=photos, face_analysis=analysis[0], **asked)
    with blueprint.group("2. Training"):
        trained = blueprint.node(
            "LikenessTrainDreamBooth",
            dataset=dataset["dataset"],
            model=checkpoint.model,
            clip=checkpoint.clip,
            vae=checkpoint.vae,
            **trained_by,
        )
    tuned = _Checkpoint(trained["model"], trained["clip"], checkpoint.vae)
    start = _start(blueprint, tuned, 3, text, SDXL.side, SDXL.side)
    pictures = _paint(blueprint, "4. Portrait", tuned.vae, tuned.model, start)
    blueprint.gives("portrait", pictures[0])
    blueprint.gives("photos used", dataset["preview"])
    blueprint.gives("losses", trained["losses"])
    blueprint.gives("files", trained["files"])


BLUEPRINTS = {  # function -> the name that users read, what it says of itself, and other names by which it is found
    portrait_of_a_person: (
        "Portrait of a Person (Likeness)",
        "A portrait of the person in your photos, by FaceID: connect photos and a checkpoint, write a prompt. One "
        "photo is enough; three to ten different ones keep the likeness better.",
        ["face", "identity", "FaceID", "IPAdapter", "consistent character"],
    ),
    two_people: (
        "Two People (Likeness)",
        "Two people in one image, each from photos of their own, one in the left half and one in the right.",
        ["couple", "two faces", "FaceID", "IPAdapter", "regional"],
    ),
    train_and_paint: (
        "Train and Paint (Likeness)",
        "Trains a LoRA of a person on four to ten photos (DreamBooth), and generates a portrait with it. Queued "
        "again, it only generates; cancelled, it resumes where it stopped.",
        ["LoRA training", "DreamBooth", "train LoRA", "personalise"],
    ),
}
