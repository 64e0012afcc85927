"""Graphs of the miniature world: nothing to download, seconds on a processor."""

from __future__ import annotations

from _graph import Graph, Node
from _pieces import (
    MINIATURE,
    PICTURE,
    find_person,
    load_miniature_analysis,
    load_photo,
    prompt,
    sample,
    sample_and_save,
    show,
)

TEXT = "a photo of a smiling person wearing glasses and a red shirt in the snow"


def miniature_portrait(graph: Graph) -> None:
    """A drawn person painted by the model that comes with the pack: nothing to download, seconds on a processor."""
    with graph.group("1. The person"):
        faces, identity = load_drawn_person(graph)
        show(graph, "Which face was taken", faces["preview"])
    world, model = load_method(graph, identity)
    start = prompt(graph, 3, MINIATURE, world["clip"], TEXT)
    sample_and_save(graph, "4. Portrait", MINIATURE, world["vae"], model["model"], start)
    graph.note(
        "Nothing has to be downloaded. Copy `workflows/miniature_person.png` from the pack's folder into ComfyUI's "
        "`input`, or drop it onto **Load Image**: a person that the model was never shown. `make demo` draws "
        "others.\n\n"
        "The miniature world knows drawn people, 128x128 pixels, and a few dozen words; the help page of **Load "
        "Miniature** lists them. Everything else is as with the large models, so this is the place to try out what a "
        "node does.\n\n"
        "Real photographs need a real model: see the workflow **portrait_faceid**.",
        width=440,
        height=340,
    )


def identity_report(graph: Graph) -> None:
    """Four drawn portraits, measured against the same seeds without the identity; the best two are saved."""
    with graph.group("1. The person"):
        _, identity = load_drawn_person(graph)
    world, model = load_method(graph, identity)
    start = prompt(graph, 3, MINIATURE, world["clip"], TEXT, batch_size=4)
    with graph.group("4. With and without the identity"):
        pictures = []
        for title, source in (("With the identity", model["model"]), ("Without, the same seeds", world["model"])):
            pictures.append(sample(graph, MINIATURE, world["vae"], source, start, title=title))
    with graph.group("5. Is it the person?"):
        judge = graph.node(
            "LikenessLoadFaceAnalysis", title="The judge: another recogniser", model="miniature-judge", provider="auto"
        )
        report = graph.node(
            "LikenessIdentityReport",
            images=pictures[0][0],
            identity=identity["identity"],
            judge=judge[0],
            baseline=pictures[1][0],
            room=420,
            extra_height=PICTURE,
        )
        best = graph.node(
            "LikenessKeepBestLikeness",
            images=pictures[0][0],
            identity=identity["identity"],
            count=2,
            judge=judge[0],
        )
        graph.next_column()
        graph.node("PreviewAny", title="In words", source=report["markdown"], extra_height=200)
        graph.node("SaveImage", title="The best two", images=best["kept"], filename_prefix="likeness/best", room=400)
    graph.note(
        "Nothing has to be downloaded: copy `workflows/miniature_person.png` from the pack's folder into ComfyUI's "
        "`input`.\n\n"
        "The judge is another recogniser than the one the adapter reads, because an adapter can please its own "
        "recogniser without looking more like the person. With buffalo_l or antelopev2 take *OpenCV (YuNet + SFace)*."
        "\n\n"
        "**Keep Best Likeness** lets only the best pictures go on: upscale those, and save time.",
        width=440,
        height=320,
    )


def load_drawn_person(graph: Graph) -> tuple[Node, Node]:
    """The faces in the picture of a drawn person that comes with the pack, and the identity."""
    photo = load_photo(graph, "A picture of a drawn person", "miniature_person.png")
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
