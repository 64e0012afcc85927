"""A drawn person painted by the model that comes with the pack: nothing to download, seconds on a CPU."""

from __future__ import annotations

from _graph import Graph
from _pieces import MINIATURE, prompt, sample_and_save, show
from _pieces_miniature import TEXT, load_drawn_person, load_method


def describe(graph: Graph) -> None:
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
