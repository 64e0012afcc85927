"""What the graphs of restoration share."""

from __future__ import annotations

from _graph import Graph, Node
from _pieces import files

GUARD_NOTE = (
    "The **identity guard** compares each face with itself before; a face that would become another person is "
    "restored less, or not at all. The report and the colours of the preview say what was done: green restored, "
    "yellow reduced, red left as it was."
)


def load_restorer(graph: Graph) -> Node:
    """GFPGAN v1.4."""
    needed = files("gfpgan-v1.4")
    return graph.node("LikenessLoadFaceRestorer", file=needed[0].name, models=needed)


def load_upscaler(graph: Graph) -> Node:
    """Real-ESRGAN x4plus."""
    needed = files("realesrgan-x4plus")
    return graph.node("UpscaleModelLoader", model_name=needed[0].name, models=needed)
