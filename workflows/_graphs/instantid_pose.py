"""InstantID: the person of one photo in the pose of another."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SDXL,
    files_note,
    load_adapter,
    load_checkpoint,
    load_photo,
    one_person,
    prompt,
    sample_and_save,
    show,
)
from _pieces_instantid import STRENGTH, control_each, keypoints, load_net


def describe(graph: Graph) -> None:
    analysis, _, identity = one_person(graph, "antelopev2", "Who")
    with graph.group("2. The pose"):
        pose = load_photo(graph, "A photo of any person in the pose", "pose.jpg")
        posed = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=pose["IMAGE"])
        graph.next_column()
        show(graph, "Whose pose", posed["preview"])
    with graph.group("3. Model and adapter"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "instantid/ip-adapter")
        options = graph.node("LikenessInstantIDOptions", noise=0.2)
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
            weight=STRENGTH,
            options=options["options"],
        )
    text = "watercolour portrait of a person in a garden, soft colours"
    start = prompt(graph, 4, SDXL, checkpoint["CLIP"], text, size=(896, 1152))
    with graph.group("5. IdentityNet"):
        net = load_net(graph)
        drawn = keypoints(graph, posed, start, identity=identity["identity"])
        controlled = control_each(graph, start, adapter, net, [(None, identity, drawn)], options=options["options"])
        graph.next_column()
        show(graph, "Where the face will be", drawn["image"])
    sample_and_save(graph, "6. Portrait", SDXL, checkpoint["VAE"], model["model"], start, **controlled)
    files_note(
        graph,
        "The identity comes from the first photo, position and pose of the face from the second. Its keypoints "
        "fit any size: the photo is centred and never stretched. Where it shows no face, the person's own keypoints "
        "stand in.",
        "**InstantID Options** reduces burnt colours; connect it to both halves.",
        "Other ControlNets (depth, pose) may go before or after **Identity ControlNet**: they keep reading the text.",
    )
