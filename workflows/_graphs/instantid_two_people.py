"""InstantID: two people in one image, each with adapter, IdentityNet, keypoints and mask."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SDXL,
    SIDES,
    apply_each,
    files_note,
    halves,
    load_adapter,
    load_checkpoint,
    prompt,
    sample_and_save,
    show,
    two_people,
)
from _pieces_instantid import STRENGTH, control_each, keypoints, load_net

PLACES = (-0.25, 0.25)  # of the faces, from the middle, in widths of the image


def describe(graph: Graph) -> None:
    width, height, seam = 1216, 832, 96
    found = two_people(graph, "antelopev2")
    with graph.group("2. Where they stand"):
        masks = halves(graph, width, height, seam)
    with graph.group("3. Model and adapter"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "instantid/ip-adapter")
        graph.next_column()
        model = apply_each(
            graph, checkpoint["MODEL"], adapter, [identity for _, identity in found], masks, weight=STRENGTH
        )
    text = "photo of two people standing side by side in a garden, upper body, soft light"
    start = prompt(graph, 4, SDXL, checkpoint["CLIP"], text, size=(width, height))
    with graph.group("5. IdentityNet, for each person"):
        net = load_net(graph)
        drawn = [
            keypoints(graph, faces, start, f"Face Keypoints: {side}", move_x=place, scale=0.8)
            for side, place, (faces, _) in zip(SIDES, PLACES, found, strict=True)
        ]
        graph.next_column()
        people = [
            (f"Identity ControlNet: {side}", identity, points)
            for side, (_, identity), points in zip(SIDES, found, drawn, strict=True)
        ]
        controlled = control_each(graph, start, adapter, net, people, masks)
        graph.next_column()
        for side, points in zip(SIDES, drawn, strict=True):
            show(graph, f"Where the face will be ({side})", points["image"])
    sample_and_save(graph, "6. Portrait", SDXL, checkpoint["VAE"], model, start, **controlled)
    files_note(
        graph,
        "Each person has a mask twice: at **Apply Identity** and at **Identity ControlNet**. Each net reads its own "
        "person, so the faces do not mix. **Face Keypoints** moves each face into its half: from photos with the face "
        "in the middle, a quarter of the width to each side.",
        "A third person is one more of each of the three nodes, with one more mask.",
    )
