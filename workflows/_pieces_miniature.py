"""What the graphs of the miniature world share: nothing to download, seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _graph import Graph, Node, Output
from _pieces import (
    MINIATURE,
    PICTURE,
    Start,
    find_person,
    load_miniature_analysis,
    prompt,
    sample_and_save,
    show,
)

TEXT = "a photo of a smiling person wearing glasses and a red shirt in the snow"


ONE, THREE, STYLE = "a person, one photo", "another person, three photos", "a style, two images"


def example(graph: Graph, photos: str = ONE) -> Output:
    """Images that come with the pack."""
    return graph.node("LikenessExamplePhotos", photos=photos)[0]


def load_drawn_person(graph: Graph, load: Callable[[], Output] | None = None) -> tuple[Node, Node]:
    """The faces in a photo of a drawn person, which is the pack's unless `load` brings another, and the identity."""
    photo = load() if load else example(graph)
    analysis = load_miniature_analysis(graph)
    graph.next_column()
    return find_person(graph, analysis, photo)


def portrait_of(graph: Graph, load: Callable[[], Output]) -> None:
    """A portrait of the person in the photo that `load` brings."""
    with graph.group("1. The person"):
        faces, identity = load_drawn_person(graph, load)
        show(graph, "Which face was taken", faces["preview"])
    world, model = load_method(graph, identity)
    start = prompt(graph, 3, MINIATURE, world["clip"], TEXT)
    sample_and_save(graph, "4. Portrait", MINIATURE, world["vae"], model["model"], start, below_note=True)


def load_method(graph: Graph, identity: Node) -> tuple[Node, Node]:
    """The model that comes with the pack, and the same with the identity applied by its own adapter."""
    with graph.group("2. Model and method"):
        world = graph.node("LikenessLoadMiniature")
        adapter = graph.node("LikenessLoadIdentityAdapter", adapter_file="miniature FaceID (in this pack)")
        model = graph.node(
            "LikenessApplyIdentity",
            model=world["model"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
            lora_strength=1.0,
        )
    return world, model


def drawn_person(graph: Graph, trigger: str = "ohwx") -> tuple[Node, Node]:
    """A dataset of the three images of a drawn person that come with the pack, and what found the faces."""
    with graph.group("1. Images of the person"):
        photos = example(graph, THREE)
        analysis = load_miniature_analysis(graph)
        person = _person_dataset(graph, photos, analysis, trigger)
    return person, analysis


def another_drawn_person(graph: Graph, analysis: Node, number: int, trigger: str) -> Node:
    """A dataset of the only image of somebody else."""
    with graph.group(f"{number}. One image of somebody else"):
        return _person_dataset(graph, example(graph, ONE), analysis, trigger)


def _person_dataset(graph: Graph, images: Output, analysis: Node, trigger: str) -> Node:
    person = graph.node(
        "LikenessPortraitDataset",
        trigger_word=trigger,
        resolution=MINIATURE.side,
        framing="largest square",
        templates="a photo of a {} person",
        smallest_face=32,
        image=images,
        face_analysis=analysis[0],
    )
    show(graph, "Image, mask, caption, verdict", person["preview"])
    return person


def drawn_style(graph: Graph, analysis: Node, group: str, shown: str) -> Node:
    """A dataset of the two images in a style that come with the pack."""
    with graph.group(group):
        photos = example(graph, STYLE)
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            resolution=MINIATURE.side,
            framing="largest square",
            templates="a {} picture of a person",
            image=photos,
            face_analysis=analysis[0],
        )
        show(graph, shown, style["preview"])
    return style


def load_miniature(graph: Graph, first_group: int = 2) -> Node:
    """The model that comes with the pack."""
    with graph.group(f"{first_group}. Model"):
        return graph.node("LikenessLoadMiniature")


def subjects_portrait(graph: Graph, group: str, names: Sequence[str], text: str) -> None:
    """A portrait by a prompt that names SeFi-IDE's subjects in these files."""
    world = load_miniature(graph, first_group=1)
    with graph.group(group):
        people = [graph.node("LikenessLoadSubject", file=f"{name}.safetensors") for name in names]
    with graph.group("3. Prompt"):
        sockets = {"subject" if i == 1 else f"subject_{i}": one["subject"] for i, one in enumerate(people, 1)}
        named = graph.node("LikenessSubjectPrompt", clip=world["clip"], model=world["model"], text=text, **sockets)
        graph.node("PreviewAny", title="What each stage reads", source=named["report"], extra_height=120)
    with graph.group("4. Negative and size"):
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text=MINIATURE.negative, clip=world["clip"])
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=1)
    sample_and_save(graph, "5. Portrait", MINIATURE, world["vae"], named["model"], Start(named, negative, latent))


def train(graph: Graph, method: str, world: Node, number: int = 3, **settings: Any) -> Node:
    """The Train node of a method on the miniature, and what it learned."""
    with graph.group(f"{number}. Training"):
        sockets = {name: world[name] for name in ("model", "clip", "vae")}
        trained = graph.node(f"LikenessTrain{method}", **sockets, **settings, extra_height=PICTURE)
    with graph.group(f"{number + 1}. What was learned"):
        show(graph, "Losses", trained["losses"])
        show(graph, "Samples", trained["samples"])
        graph.next_column()
        graph.node("PreviewAny", title="Files and words", source=trained["files"], extra_height=120)
    return trained


def use_miniature(
    graph: Graph, world: Node, trained: Node, text: str, first_group: int = 5, below_note: bool = False
) -> None:
    """A portrait by the trained model, and the note of all training graphs."""
    start = prompt(graph, first_group, MINIATURE, trained["clip"], text)
    title = f"{first_group + 1}. Portrait"
    sample_and_save(graph, title, MINIATURE, world["vae"], trained["model"], start, below_note)
    note_on_training(graph)


def note_on_training(graph: Graph) -> None:
    """What to know of every graph that trains on the miniature."""
    graph.note(
        "# 1. Press Run\n\n"
        "Nothing has to be downloaded. You can cancel at any time: queued again, the training resumes where it "
        "stopped, and a finished one is not repeated. Its run is in `output/likeness/runs`.\n\n"
        "# 2. Your own photos\n\n"
        "Four to ten, in a folder of ComfyUI's `input` whose name you enter as *folder* of **Portrait Dataset**; "
        "delete **Example Photos**. Put **Load Checkpoint** in the place of **Load Miniature**, a face analysis such "
        "as buffalo_l in the place of *miniature*, the resolution of the model (512 or 1024) into **Portrait "
        "Dataset**, and take the steps and the learning rate from the help page of the Train node.",
    )
