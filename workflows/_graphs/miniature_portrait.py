"""The starter's portrait of a photo in ComfyUI's input folder, for batches and scripts: no card, for it has no note."""

from __future__ import annotations

from _graph import Graph
from _pieces import load_photo
from _pieces_miniature import portrait_of


def describe(graph: Graph) -> None:
    portrait_of(graph, lambda: load_photo(graph, "An image of a drawn person", "miniature_person.png")[0])
