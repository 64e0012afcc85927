"""Two drawn people side by side, by the model that comes with the pack: nothing to download, seconds on a CPU."""

from __future__ import annotations

from _graph import Graph
from _pieces import MINIATURE, SIDES, find_person, load_miniature_analysis, prompt, sample, save
from _pieces_miniature import ONE, THREE, example


def describe(graph: Graph) -> None:
    with graph.group("1. The two people"):
        photos = [example(graph, which) for which in (ONE, THREE)]
        analysis = load_miniature_analysis(graph)
        graph.next_column()
        people = [find_person(graph, analysis, photo, name=name)[1] for name, photo in zip(SIDES, photos, strict=True)]
    with graph.group("2. Model and method"):
        world = graph.node("LikenessLoadMiniature")
        adapter = graph.node("LikenessLoadIdentityAdapter", adapter_file="miniature FaceID (in this pack)")
        graph.next_column()
        models = [
            graph.node(
                "LikenessApplyIdentity",
                title=f"Apply Identity: {side}",
                model=world["model"],
                adapter=adapter["adapter"],
                identity=person["identity"],
                lora_strength=1.0,
            )
            for side, person in zip(SIDES, people, strict=True)
        ]
    start = prompt(graph, 3, MINIATURE, world["clip"], "a photo of a smiling person in the snow")
    with graph.group("4. Both in one image"):
        left, right = (
            sample(graph, MINIATURE, world["vae"], model["model"], start, title=f"The person on the {side}")
            for side, model in zip(SIDES, models, strict=True)
        )
        graph.next_column()
        both = graph.node("ImageStitch", title="Side by side", image1=left[0], image2=right[0])
        save(graph, both[0], "two_people", below_note=True)
    graph.note(
        "# 1. Press Run\n\n"
        "Nothing has to be downloaded. The model that comes with the pack draws one person at a time, so both are "
        "drawn and put side by side.\n\n"
        "# 2. Your own photos\n\n"
        "A large model draws both in one scene: the workflow **two_people** gives each person a half of the image by a "
        "mask, and **instantid_two_people** and **photomaker_two_people** show two other ways.",
    )
