"""One face of a group image sampled anew at a higher resolution, with the identity of the person it should be."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SD15,
    files_note,
    find_person,
    load_adapter,
    load_analysis,
    load_checkpoint,
    load_photo,
    prompts,
    show,
)


def describe(graph: Graph) -> None:
    with graph.group("1. The group, and one of its people"):
        group = load_photo(graph, "An image of a group", "person_right.jpg")
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        _, identity = find_person(graph, analysis, photo["IMAGE"])
        faces = graph.node(
            "LikenessFindFaces",
            title="Which face of the group",
            face_analysis=analysis[0],
            image=group["IMAGE"],
            choice="left to right",
        )
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "ip-adapter-faceid_sd15")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
        )
        graph.next_column()
        positive, negative = prompts(
            graph, SD15, checkpoint["CLIP"], "photo of the face of a person, sharp, detailed skin"
        )
    with graph.group("3. Detail"):
        done = graph.node(
            "LikenessDetailFaces",
            image=group["IMAGE"],
            model=model["model"],
            positive=positive[0],
            negative=negative[0],
            vae=checkpoint["VAE"],
            face_analysis=analysis[0],
            seed=1,
            steps=SD15.steps,
            cfg=SD15.cfg,
            sampler_name=SD15.sampler,
            scheduler=SD15.scheduler,
            resolution=SD15.side,
            people="the chosen face",
            faces=faces["faces"],
        )
        graph.next_column()
        show(graph, "Before and after", done["comparison"])
        graph.node("PreviewAny", title="Report", source=done["report"], extra_height=120)
        graph.next_column()
        graph.node("SaveImage", images=done["image"], filename_prefix="likeness/detailed", room=400, extra_height=410)
    files_note(
        graph,
        "The face is sampled in a square of its own, so small faces get a resolution at which the model can render a "
        "face. Only the face changes: everything around it stays bit-identical.",
        "For a second person add one more **Detail Faces** after this one, with that person's model. Connect the "
        "**identity** to it as well, and a result that is less like the person than the face was is held back.",
    )
