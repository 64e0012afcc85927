"""Graphs of pictures that say how something looks: style, saved encodings, one reference after another."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SD15,
    SDXL,
    Start,
    files_note,
    join,
    load_adapter,
    load_checkpoint,
    load_encoder,
    load_photo,
    portrait,
    prompts,
    sample_and_save,
    show,
)


def style_reference(graph: Graph) -> None:
    """The style of a reference picture, without its content: IP-Adapter Plus with options."""
    with graph.group("1. The reference"):
        picture = load_photo(graph, "A picture in the style you want", "style.jpg")
        prepared = graph.node("LikenessPrepareReference", image=picture["IMAGE"], sharpening=0.1)
        noise = graph.node("LikenessReferenceNoise", image=prepared[0], kind="fade", strength=0.7, seed=1)
        graph.next_column()
        show(graph, "What the encoder sees", prepared[0])
        show(graph, "What to keep away from", noise[0])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-plus_sdxl_vit-h")
        encoder = load_encoder(graph)
        graph.next_column()
        options = graph.node(
            "LikenessIPAdapterOptions",
            weight_type="style transfer",
            image=prepared[0],
            image_negative=noise[0],
        )
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            clip_vision=encoder[0],
            options=options[0],
        )
    portrait(graph, SDXL, checkpoint, model["model"], "portrait of a woman in a garden", first_group=3)
    files_note(
        graph,
        "*style transfer* lets in colours and brushwork and leaves the layout to the prompt; *composition* does the "
        "opposite, *linear* takes both. For a person in this style, put an **Apply Identity** with a FaceID adapter "
        "before or after this one.",
    )


def save_embeds(graph: Graph) -> None:
    """Two reference pictures encoded once, joined and saved."""
    with graph.group("1. The references"):
        pictures = [load_photo(graph, f"Reference {number}", f"reference_{number}.jpg") for number in (1, 2)]
    with graph.group("2. Encode"):
        adapter = load_adapter(graph, "ip-adapter-plus_sd15")
        encoder = load_encoder(graph)
        encoded = [
            graph.node("LikenessEncodeReference", adapter=adapter[0], clip_vision=encoder[0], image=picture["IMAGE"])
            for picture in pictures
        ]
    with graph.group("3. Join and save"):
        joined = graph.node("LikenessCombineEmbeds", embeds_1=encoded[0][0], embeds_2=encoded[1][0])
        saved = graph.node("LikenessSaveEmbeds", embeds=joined[0], filename="reference")
        graph.node("PreviewAny", title="Saved as", source=saved[0], extra_height=60)
    files_note(
        graph,
        "The file goes to `models/likeness_embeds/reference.safetensors`; a number is added when the name is taken. "
        "The workflow **saved_embeds** uses it without the pictures and without the encoder.",
        "*concat* keeps each picture's own tokens; *average* mixes the two into one reference.",
    )


def saved_embeds(graph: Graph) -> None:
    """A portrait after saved encodings: no reference picture and no encoder is needed."""
    with graph.group("1. The saved reference"):
        embeds = graph.node("LikenessLoadEmbeds", file="reference.safetensors")
        options = graph.node("LikenessIPAdapterOptions", embeds=embeds[0])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "ip-adapter-plus_sd15")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter[0],
            weight=0.8,
            options=options[0],
        )
        graph.node("PreviewAny", title="What was applied", source=model["report"], extra_height=80)
    portrait(graph, SD15, checkpoint, model["model"], "portrait photo of a person, sharp, soft light", first_group=3)
    files_note(
        graph,
        "`reference.safetensors` in `models/likeness_embeds` is what the workflow **save_embeds** writes: run it "
        "first, then reload the page. Encodings fit the adapter they were made for.",
    )


def batch_schedule(graph: Graph) -> None:
    """From one reference to another over a batch: a weight for every picture, and the opposite for the other one."""
    with graph.group("1. From one reference to the other"):
        first = load_photo(graph, "The first pictures look like this", "reference_1.jpg")
        last = load_photo(graph, "The last pictures look like this", "reference_2.jpg")
        graph.next_column()
        both = join(graph, [first, last])
        schedule = graph.node(
            "LikenessWeightSchedule", timing="ease_in_out", frames=8, method="shift batches", image=both
        )
        graph.node("PreviewAny", title="Weights of the first", source=schedule["weights"], extra_height=80)
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
        "**Weight Schedule** gives every picture of the batch its own weight: 1 to 0 for the first reference, 0 to 1 "
        "for the second. Its *frames* also set the size of the batch; fewer need less memory.",
        "Both references should have one shape, because **Batch Images** cuts the second to the first.",
    )
