"""Graphs that make datasets, and learn a drawn person or style from them."""

from __future__ import annotations

from typing import Any

from _graph import Graph, Node
from _pieces import (
    MINIATURE,
    files_note,
    join,
    load_analysis,
    load_miniature_analysis,
    load_photo,
    prompt,
    sample_and_save,
    show,
)


def portrait_dataset(graph: Graph) -> None:
    """Photos of a person, and a portrait in a style, made ready for training and saved for editing."""
    with graph.group("1. Photos of the person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        batch = join(graph, photos)
        analysis = load_analysis(graph, "buffalo_l")
        person = graph.node(
            "LikenessPortraitDataset",
            trigger_word="ohwx",
            save_as="person",
            image=batch,
            face_analysis=analysis[0],
        )
        graph.next_column()
        show(graph, "Photo, mask, caption, verdict", person["preview"])
        graph.node("PreviewAny", title="Report on the person", source=person["report"], extra_height=120)
    with graph.group("2. Portraits in the style"):
        style_photo = load_photo(graph, "A portrait in the style", "style.jpg")
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            framing="largest square",
            save_as="style",
            image=style_photo["IMAGE"],
            face_analysis=analysis[0],
        )
        graph.next_column()
        show(graph, "The face is no part of the style", style["preview"])
        graph.node("PreviewAny", title="Report on the style", source=style["report"], extra_height=120)
    files_note(
        graph,
        "With many photos, put them into a folder below `input` and write its name into *folder* instead: **Batch "
        "Images** cuts every photo to the shape of the first. A `.txt` beside a photo is its caption, a `.mask.png` "
        "its mask.",
        "The datasets are in `output/likeness/datasets/person` and `style`. Edit captions and masks there, delete "
        "pictures, queue again: they are read back as they are, and never written a second time.",
    )


def train_textual_inversion(graph: Graph) -> None:
    """A drawn person learned as a new word, and a portrait with that word."""
    (person, _), world = drawn_person(graph), load_miniature(graph)
    trained = train(
        graph,
        "TextualInversion",
        world,
        dataset=person["dataset"],
        name="drawn_person",
        steps=400,
        learning_rate=0.005,
        vectors=2,
        preview_every=100,
    )
    use_miniature(graph, world, trained, "a photo of a embedding:drawn_person person in the snow")


def train_dreambooth(graph: Graph) -> None:
    """A drawn person learned by a LoRA, and a portrait with it."""
    (person, _), world = drawn_person(graph, trigger="sks"), load_miniature(graph)
    trained = train(
        graph,
        "DreamBooth",
        world,
        dataset=person["dataset"],
        name="drawn_person",
        steps=400,
        learning_rate=0.0005,
        rank=8,
        class_pictures=16,
        preview_every=100,
    )
    use_miniature(graph, world, trained, "a photo of a sks person in the snow")


def train_magicapture(graph: Graph) -> None:
    """A drawn person and a style of drawing learned together, and that person in that style."""
    person, analysis = drawn_person(graph)
    with graph.group("2. Portraits in the style"):
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
        show(graph, "The face is no part of the style", style["preview"])
    world = load_miniature(graph, first_group=3)
    trained = train(
        graph,
        "MagiCapture",
        world,
        number=4,
        person=person["dataset"],
        style=style["dataset"],
        name="drawn",
        inversion_steps=300,
        tuning_steps=300,
        rank=8,
        preview_every=100,
        person_templates="a photo of a {} person",
        style_templates="a {} picture of a person",
        face_analysis=analysis[0],
    )
    text = "a embedding:drawn-style picture of a embedding:drawn-person person"
    use_miniature(graph, world, trained, text, first_group=6)


def drawn_person(graph: Graph, trigger: str = "ohwx") -> tuple[Node, Node]:
    """A dataset of the three pictures of a drawn person that come with the pack, and what found the faces."""
    with graph.group("1. Pictures of the person"):
        photos = [load_photo(graph, f"Picture {n}", f"miniature_person_{n}.png") for n in (1, 2, 3)]
        graph.next_column()
        batch = join(graph, photos)
        analysis = load_miniature_analysis(graph)
        person = graph.node(
            "LikenessPortraitDataset",
            trigger_word=trigger,
            resolution=MINIATURE.side,
            framing="largest square",
            templates="a photo of a {} person",
            smallest_face=32,
            image=batch,
            face_analysis=analysis[0],
        )
        show(graph, "Picture, mask, caption, verdict", person["preview"])
    return person, analysis


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
    graph.note(
        "Nothing has to be downloaded. Copy the pictures `miniature_*.png` from the pack's folder `workflows` into "
        "ComfyUI's `input`, then queue.\n\n"
        "Cancel whenever you like: queued again, the training goes on where it stopped. Its run is in "
        "`output/likeness/runs`.\n\n"
        "For real photographs put **Load Checkpoint** in the place of **Load Miniature**, a face analysis such as "
        "buffalo_l in the place of *miniature*, the resolution of the model (512 or 1024) into **Portrait Dataset**, "
        "and take the steps and the learning rate from the help page of the Train node.",
        width=440,
        height=380,
    )
