"""Graphs of people in photographs: portraits, several people, saved identities, keypoints."""

from __future__ import annotations

from collections.abc import Sequence

from _graph import Graph, Node, Output
from _pieces import (
    SD15,
    SDXL,
    files_note,
    find_person,
    join,
    load_adapter,
    load_analysis,
    load_checkpoint,
    load_photo,
    portrait,
    show,
)

SIDES = ("left", "right")


def portrait_faceid(graph: Graph) -> None:
    """One photo, one FaceID adapter, SD1.5: the smallest portrait."""
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        graph.next_column()
        faces, identity = find_person(graph, analysis, photo["IMAGE"])
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
    portrait(graph, SD15, checkpoint, model["model"], "portrait photo of a person, sharp, soft light", first_group=3)
    files_note(graph)


def two_people(graph: Graph) -> None:
    """Two identities in one picture, each in its own half: Apply Identity twice, with a mask each."""
    width, height, seam = 1216, 832, 96
    with graph.group("1. The two people"):
        photos = [
            load_photo(graph, "The person on the left", "person_left.jpg"),
            load_photo(graph, "The person on the right", "person_right.jpg"),
        ]
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        found = [
            find_person(graph, analysis, photo["IMAGE"], name=side) for side, photo in zip(SIDES, photos, strict=True)
        ]
        graph.next_column()
        for side, (faces, _) in zip(SIDES, found, strict=True):
            show(graph, f"Which face was taken ({side})", faces["preview"])
    with graph.group("2. Where they stand"):
        masks = halves(graph, width, height, seam)
    with graph.group("3. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-faceid_sdxl")
        graph.next_column()
        model = apply_each(graph, checkpoint["MODEL"], adapter, [identity for _, identity in found], masks)
        both = graph.node("LikenessScaleIdentities", title="Both, stronger or weaker", model=model)
    portrait(
        graph,
        SDXL,
        checkpoint,
        both["model"],
        "photo of two people standing side by side in a garden, upper body, soft light",
        first_group=4,
        size=(width, height),
    )
    files_note(
        graph,
        "Each person lives in a half of the picture: white is where a person may appear. For another division, load "
        "or paint masks and connect them to the two **Apply Identity** nodes. A third person is one more **Apply "
        "Identity** with one more mask.",
        "If one face takes over, lower its strength; **Scale Identities** moves both.",
    )


def halves(graph: Graph, width: int, height: int, seam: int) -> tuple[Node, Node]:
    """Masks of the left and the right half of a picture, soft along the seam; they fit pictures of any size."""
    nowhere = graph.node("SolidMask", title="The whole picture", value=0.0, width=width, height=height)
    half = graph.node("SolidMask", title="Its left half", value=1.0, width=width // 2 + seam // 2, height=height)
    soft = graph.node("FeatherMask", title="Soft towards the middle", mask=half[0], right=seam)
    left = graph.node(
        "MaskComposite", title="Mask of the left person", destination=nowhere[0], source=soft[0], operation="add"
    )
    return left, graph.node("InvertMask", title="Mask of the right person", mask=left[0])


def apply_each(
    graph: Graph, model: Output, adapter: Node, identities: Sequence[Node], masks: Sequence[Node], **asked: Output
) -> Output:
    """The model with every person in a place of their own. asked: further inputs of each Apply Identity."""
    for side, identity, mask in zip(SIDES, identities, masks, strict=True):
        model = graph.node(
            "LikenessApplyIdentity",
            title=f"Apply Identity: {side}",
            model=model,
            adapter=adapter["adapter"],
            identity=identity["identity"],
            attn_mask=mask[0],
            **asked,
        )["model"]
    return model


def save_identity(graph: Graph) -> None:
    """Several photos of one person to a file, to be used without photos and without face models."""
    with graph.group("1. Photos of one person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        batch = join(graph, photos)
        analysis = load_analysis(graph, "buffalo_l")
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=batch)
        show(graph, "Which faces were taken", faces["preview"])
    with graph.group("2. The identity"):
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
        graph.node("LikenessSaveIdentity", identity=identity["identity"], filename="person")
        graph.node("PreviewAny", title="Report", source=identity["report"], extra_height=120)
        graph.next_column()
        show(graph, "The portraits in the file", identity["portraits"])
    files_note(
        graph,
        "Three to ten different photos keep a person better than one. The report names photos that do not look like "
        "the others; they are left out.",
        "**Batch Images** cuts every photo to the shape of the first: use photos of one shape, or crop them first.",
        "The file goes to `models/likeness_identities/person.safetensors`, the next one to `person_2.safetensors`: "
        "nothing is overwritten. It holds biometric data of a person: share it only with that person's consent.",
    )


def saved_identity(graph: Graph) -> None:
    """Two saved identities blended into one person, and a portrait of that person."""
    with graph.group("1. Two saved people"):
        first = graph.node("LikenessLoadIdentity", file="person.safetensors")
        second = graph.node("LikenessLoadIdentity", file="person_2.safetensors")
        graph.next_column()
        blend = graph.node(
            "LikenessCombineIdentities",
            identity_1=first["identity"],
            identity_2=second["identity"],
            mode="blend",
            name="blend",
        )
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-faceid_sdxl")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=blend["identity"],
        )
        graph.node("PreviewAny", title="What was applied", source=model["report"], extra_height=80)
    portrait(graph, SDXL, checkpoint, model["model"], "portrait photo of a person, natural light", first_group=3)
    files_note(
        graph,
        "`person.safetensors` and `person_2.safetensors` in `models/likeness_identities` are what the workflow "
        "**save_identity** writes when it is run for two people. Choose your own files in **Load Identity**.",
        "The weights of **Combine Identities** move the blend from one person to the other. With the mode "
        "*same person* it joins two files of one person instead.",
    )


def face_keypoints(graph: Graph) -> None:
    """The five keypoints of a face, drawn for InstantID's ControlNet."""
    with graph.group("1. A photo with the pose you want"):
        photo = load_photo(graph, "A photo with the pose", "pose.jpg")
        analysis = load_analysis(graph, "antelopev2")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Keypoints"):
        keypoints = graph.node("LikenessFaceKeypoints", faces=faces["faces"], width=SDXL.side, height=SDXL.side)
        show(graph, "For the ControlNet of InstantID", keypoints[0])
    files_note(
        graph,
        "Width and height are those of the picture you make: lines and dots have the size InstantID was trained "
        "with, whatever the photo's size. Eyes, nose and mouth corners come from the detector; any face analysis "
        "with keypoints will do.",
    )
