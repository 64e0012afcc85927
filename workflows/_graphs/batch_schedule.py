"""From one reference to another over a batch: a weight for every image, and the opposite for the other one."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SD15,
    Start,
    files_note,
    load_adapter,
    load_checkpoint,
    load_encoder,
    load_photo,
    prompts,
    sample_and_save,
)


def describe(graph: Graph) -> None:
    with graph.group("1. From one reference to the other"):
        first = load_photo(graph, "The first images look like this", "reference_1.jpg")
        last = load_photo(graph, "The last images look like this", "reference_2.jpg")
        graph.next_column()
        both = graph.node("ImageBatch", image1=first["IMAGE"], image2=last["IMAGE"])[0]
        schedule = graph.node(
            "LikenessWeightSchedule", timing="ease_in_out", frames=8, method="shift batches", image=both
        )
        graph.node("PreviewAny", title="Weights of the first", source=schedule["weights"], extra_height=120)
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "ip-adapter-plus_sd15")
        encoder = load_encoder(graph)
        model = checkpoint["MODEL"]
        for number, weights, image in ((1, "weights", "image 1"), (2, "weights inverted", "image 2")):
            graph.next_column()
            options = graph.node(
                "LikenessIPAdapterOptions",
                title=f"Options of reference {number}",
                unfold_batch=True,
                picture_weights=schedule[weights],
                image=schedule[image],
            )
            model = graph.node(
                "LikenessApplyIdentity",
                title=f"Apply reference {number}",
                model=model,
                adapter=adapter[0],
                weight=0.8,
                clip_vision=encoder[0],
                options=options[0],
            )["model"]
    with graph.group("3. Prompt"):
        positive, negative = prompts(graph, SD15, checkpoint["CLIP"], "portrait photo of a person, sharp, soft light")
        latent = graph.node("EmptyLatentImage", width=SD15.side, height=SD15.side, batch_size=schedule["frames"])
        same_noise = graph.node("LatentBatchSeedBehavior", title="The same noise for all", samples=latent[0])
    start = Start(positive, negative, same_noise)
    sample_and_save(graph, "4. Portraits", SD15, checkpoint["VAE"], model, start)
    files_note(
        graph,
        "**Weight Schedule** gives every image of the batch its own weight: 1 to 0 for the first reference, 0 to 1 "
        "for the second. Its *frames* also set the size of the batch; fewer need less memory.",
        "Both references should have one shape, because **Batch Images** cuts the second to the first.",
    )
