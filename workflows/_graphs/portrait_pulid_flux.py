"""One person with PuLID on FLUX.1-dev: a photo, antelopev2, PuLID 0.9.1, and the step from which the person acts."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, find_person, load_analysis, load_checkpoint, load_photo, load_pulid, show
from _pieces_flux import FLUX, portrait


def describe(graph: Graph) -> None:
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        graph.next_column()
        analysis = load_analysis(graph, "antelopev2")
        faces, identity = find_person(graph, analysis, photo["IMAGE"])
        graph.next_column()
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, FLUX)
        adapter = load_pulid(graph, "pulid-flux-v0.9.1")
        graph.next_column()
        options = graph.node("LikenessPuLIDOptions", start_step=4)
        applied = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter[0],
            identity=identity[0],
            options=options[0],
            weight=1.0,
        )
    portrait(
        graph,
        checkpoint,
        applied["model"],
        "portrait photo of a person in a snowy forest, warm coat, soft light",
        first_group=3,
    )
    files_note(
        graph,
        "**start_step**: 4 keeps photos natural; 0 or 1 suits drawings and other styles, and has more likeness.",
        "FLUX.1-dev, its fp8 and GGUF files, Krea, Kontext and schnell all fit: load them with the node you usually "
        "use, and set schnell to 4 steps.",
    )
