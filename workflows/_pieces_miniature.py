"""What the graphs of the miniature world share: nothing to download, seconds on a CPU."""

from __future__ import annotations

from typing import Any

from _graph import Graph, Node, Output
from _pieces import (
    MINIATURE,
    find_person,
    join,
    load_miniature_analysis,
    load_photo,
    prompt,
    sample_and_save,
    show,
)

TEXT = "a photo of a smiling person wearing glasses and a red shirt in the snow"


def load_drawn_person(graph: Graph) -> tuple[Node, Node]:
    """The faces in the image of a drawn person that comes with the pack, and the identity."""
    photo = load_photo(graph, "An image of a drawn person", "miniature_person.png")
    analysis = load_miniature_analysis(graph)
    graph.next_column()
    return find_person(graph, analysis, photo["IMAGE"])


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
        photos = [load_photo(graph, f"Picture {n}", f"miniature_person_{n}.png") for n in (1, 2, 3)]
        graph.next_column()
        batch = join(graph, photos)
        analysis = load_miniature_analysis(graph)
        person = _person_dataset(graph, batch, analysis, trigger)
    return person, analysis


def another_drawn_person(graph: Graph, analysis: Node, number: int, trigger: str) -> Node:
    """A dataset of the only picture of somebody else."""
    with graph.group(f"{number}. One image of somebody else"):
        photo = load_photo(graph, "Picture", "miniature_person.png")
        graph.next_column()
        return _person_dataset(graph, photo["IMAGE"], analysis, trigger)


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
        photos = [load_photo(graph, f"Style {n}", f"miniature_style_{n}.png") for n in (1, 2)]
        graph.next_column()
        batch = join(graph, photos)
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            resolution=MINIATURE.side,
            framing="largest square",
            templates="a {} picture of a person",
            image=batch,
            face_analysis=analysis[0],
        )
        show(graph, shown, style["preview"])
    return style


def load_miniature(graph: Graph, first_group: int = 2) -> Node:
    """The model that comes with the pack."""
    with graph.group(f"{first_group}. Model"):
        return graph.node("LikenessLoadMiniature")


def train(graph: Graph, method: str, world: Node, number: int = 3, **settings: Any) -> Node:
    """The Train node of a method on the miniature, and what it learned."""
    with graph.group(f"{number}. Training"):
        trained = graph.node(
            f"LikenessTrain{method}", model=world["model"], clip=world["clip"], vae=world["vae"], **settings
        )
    with graph.group(f"{number + 1}. What was learned"):
        show(graph, "Losses", trained["losses"])
        show(graph, "Samples", trained["samples"])
        graph.next_column()
        graph.node("PreviewAny", title="Files and words", source=trained["files"], extra_height=100)
    return trained


def use_miniature(graph: Graph, world: Node, trained: Node, text: str, first_group: int = 5) -> None:
    """A portrait by the trained model, and the note of all training graphs."""
    start = prompt(graph, first_group, MINIATURE, trained["clip"], text)
    sample_and_save(graph, f"{first_group + 1}. Portrait", MINIATURE, world["vae"], trained["model"], start)
    note_on_training(graph)


def note_on_training(graph: Graph) -> None:
    """What to know of every graph that trains on the miniature."""
    graph.note(
        "Nothing has to be downloaded. Copy the images `miniature_*.png` from the pack's folder `workflows` into "
        "ComfyUI's `input`, then queue.\n\n"
        "You can cancel at any time: queued again, the training resumes where it stopped. Its run is in "
        "`output/likeness/runs`.\n\n"
        "For real photographs put **Load Checkpoint** in the place of **Load Miniature**, a face analysis such as "
        "buffalo_l in the place of *miniature*, the resolution of the model (512 or 1024) into **Portrait Dataset**, "
        "and take the steps and the learning rate from the help page of the Train node.",
        width=440,
        height=380,
    )
