"""Four drawn portraits, measured against the same seeds without the identity; the best two are saved."""

from __future__ import annotations

from _graph import Graph
from _pieces import MINIATURE, PICTURE, prompt, sample
from _pieces_miniature import TEXT, load_drawn_person, load_method

ENOUGH = 30.0  # percent of real photos' likeness; the miniature's adapter reaches about this


def describe(graph: Graph) -> None:
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
        enough = graph.node("PrimitiveFloat", title="Likeness that is enough, in percent", value=ENOUGH)
        report = graph.node(
            "LikenessIdentityReport",
            threshold=enough[0],
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
            threshold=enough[0],
            judge=judge[0],
        )
        graph.next_column()
        graph.node("PreviewAny", title="In words", source=report["markdown"], extra_height=200)
        graph.node("SaveImage", title="The best two", images=best["kept"], filename_prefix="likeness/best", room=400)
    graph.note(
        "# 1. Press Run\n\n"
        "Nothing has to be downloaded.\n\n"
        "# 2. Read the report\n\n"
        "The judge is another recogniser than the one the adapter reads, because an adapter can please its own "
        "recogniser without looking more like the person. With buffalo_l or antelopev2 take *OpenCV (YuNet + SFace)*."
        "\n\n"
        "**Keep Best Likeness** lets only the best images go on: upscale those, and save time.",
    )
