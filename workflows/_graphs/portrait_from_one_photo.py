"""A drawn person painted by the model that comes with the pack: nothing to download, seconds on a CPU."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import example, portrait_of


def describe(graph: Graph) -> None:
    portrait_of(graph, lambda: example(graph))
    graph.note(
        "# 1. Press Run\n\n"
        "Nothing has to be downloaded: the photo, a person that the model was never shown, and the model come with the "
        "pack.\n\n"
        "# 2. Change the prompt, press Run\n\n"
        "The miniature world knows drawn people, 128x128 pixels, and a few dozen words; the help page of **Load "
        "Miniature** lists them. Everything else is as with the large models, so this is the place to try out what a "
        "node does.\n\n"
        "# 3. Your own photo\n\n"
        "Real photographs need a real model: `likeness models get sd15 buffalo_l ip-adapter-faceid_sd15`. Then connect "
        "**Load Image** in the place of **Example Photos** and **Load Checkpoint** in the place of **Load Miniature**, "
        "choose *buffalo_l* and *ip-adapter-faceid_sd15.bin*, and make the latent 512x512. The workflow "
        "**portrait_faceid** has all of this.",
    )
