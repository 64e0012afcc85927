"""InstantID: one photo, adapter and IdentityNet, keypoints from the same photo."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, files_note, load_adapter, load_checkpoint, one_person, prompt, sample_and_save, show
from _pieces_instantid import SIDE, STRENGTH, control_each, keypoints, load_net


def describe(graph: Graph) -> None:
    _, faces, identity = one_person(graph, "antelopev2")
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "instantid/ip-adapter")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
            weight=STRENGTH,
        )
    text = "film noir portrait of a person in a raincoat, street lamp at night, high contrast"
    start = prompt(graph, 3, SDXL, checkpoint["CLIP"], text, size=(SIDE, SIDE))
    with graph.group("4. IdentityNet"):
        net = load_net(graph)
        drawn = keypoints(graph, faces, start)
        controlled = control_each(graph, start, adapter, net, [(None, identity, drawn)])
        graph.next_column()
        show(graph, "Where the face will be", drawn["image"])
    sample_and_save(graph, "5. Portrait", SDXL, checkpoint["VAE"], model["model"], start, **controlled)
    files_note(
        graph,
        "InstantID has two halves: the adapter at **Apply Identity**, and IdentityNet at **Identity ControlNet**, "
        "which reads the person in place of the text. If colours look burnt, lower the strength of IdentityNet first.",
        "The face appears where it is in the photo. Move or scale it at **Face Keypoints**.",
    )
