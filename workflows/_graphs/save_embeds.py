"""Two reference images encoded once, joined and saved."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, load_adapter, load_encoder, load_photo


def describe(graph: Graph) -> None:
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
        graph.node("PreviewAny", title="Saved as", source=saved[0], extra_height=120)
    files_note(
        graph,
        "The file goes to `models/likeness_embeds/reference.safetensors`; a number is added when the name is taken. "
        "The workflow **saved_embeds** uses it without the images and without the encoder.",
        "*concat* keeps each image's own tokens; *average* mixes the two into one reference.",
    )
