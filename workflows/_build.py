"""Writes the example workflows: `python workflows/_build.py` (needs the real ComfyUI, see `make comfyui`).

Each function below describes one graph; `GRAPHS` lists them.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from _graph import Graph, ModelFile, Node, ObjectInfo, Output, write

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
HOST_VERSION = "0.3.64"  # the version the files are made with; they open on any supported one
PICTURE = 330  # room for a picture in a node


@dataclass(frozen=True)
class Base:
    """A base model, the settings that suit it, and the size it was trained for."""

    checkpoint: str | None  # in the registry; the miniature comes with the pack
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    side: int


SD15 = Base("sd15", 30, 7.5, "ddim", "ddim_uniform", 512)
SDXL = Base("realvisxl-v5", 30, 5.0, "dpmpp_2m", "karras", 1024)
MINIATURE = Base(None, 20, 4.0, "euler", "normal", 128)
NEGATIVE = "monochrome, lowres, bad anatomy, worst quality"


# --- the graphs -------------------------------------------------------------------------------------------------------


def portrait_faceid(graph: Graph) -> None:
    """One photo, one FaceID adapter, SD1.5: the smallest portrait."""
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
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
        found, identities = [], []
        for side, photo in zip(("left", "right"), photos, strict=True):
            found.append(graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"]))
            identities.append(graph.node("LikenessIdentityFromPhotos", faces=found[-1]["faces"], name=side))
        graph.next_column()
        for side, faces in zip(("left", "right"), found, strict=True):
            show(graph, f"Which face was taken ({side})", faces["preview"])
    with graph.group("2. Where they stand"):
        nowhere = graph.node("SolidMask", title="The whole picture", value=0.0, width=width, height=height)
        half = graph.node("SolidMask", title="Its left half", value=1.0, width=width // 2 + seam // 2, height=height)
        soft = graph.node("FeatherMask", title="Soft towards the middle", mask=half[0], right=seam)
        left = graph.node(
            "MaskComposite", title="Mask of the left person", destination=nowhere[0], source=soft[0], operation="add"
        )
        right = graph.node("InvertMask", title="Mask of the right person", mask=left[0])
    with graph.group("3. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-faceid_sdxl")
        graph.next_column()
        model = checkpoint["MODEL"]
        for side, identity, mask in zip(("left", "right"), identities, (left, right), strict=True):
            model = graph.node(
                "LikenessApplyIdentity",
                title=f"Apply Identity: {side}",
                model=model,
                adapter=adapter["adapter"],
                identity=identity["identity"],
                attn_mask=mask[0],
            )["model"]
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


def save_identity(graph: Graph) -> None:
    """Several photos of one person to a file, to be used without photos and without face models."""
    with graph.group("1. Photos of one person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        batch = photos[0]["IMAGE"]
        for photo in photos[1:]:
            batch = graph.node("ImageBatch", image1=batch, image2=photo["IMAGE"])[0]
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
        both = graph.node("ImageBatch", image1=first["IMAGE"], image2=last["IMAGE"])
        schedule = graph.node(
            "LikenessWeightSchedule", timing="ease_in_out", frames=8, method="shift batches", image=both[0]
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
        positive, negative = prompts(graph, checkpoint, "portrait photo of a person, sharp, soft light")
        latent = graph.node("EmptyLatentImage", width=SD15.side, height=SD15.side, batch_size=schedule["frames"])
        same_noise = graph.node("LatentBatchSeedBehavior", title="The same noise for all", samples=latent[0])
    sample(graph, "4. Portraits", SD15, checkpoint["VAE"], model, positive, negative, same_noise[0])
    files_note(
        graph,
        "**Weight Schedule** gives every picture of the batch its own weight: 1 to 0 for the first reference, 0 to 1 "
        "for the second. Its *frames* also set the size of the batch; fewer need less memory.",
        "Both references should have one shape, because **Batch Images** cuts the second to the first.",
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


def portrait_dataset(graph: Graph) -> None:
    """Photos of a person, and a portrait in a style, made ready for training and saved for editing."""
    with graph.group("1. Photos of the person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        batch = photos[0]["IMAGE"]
        for photo in photos[1:]:
            batch = graph.node("ImageBatch", image1=batch, image2=photo["IMAGE"])[0]
        analysis = load_analysis(graph, "buffalo_l")
        person = graph.node(
            "LikenessPortraitDataset",
            trigger_word="ohwx",
            save_as="person",
            image=batch,
            face_analysis=analysis[0],
        )
        graph.next_column()
        show(graph, "Photo, mask, caption, verdict", person["preview"])
        graph.node("PreviewAny", title="Report on the person", source=person["report"], extra_height=120)
    with graph.group("2. Portraits in the style"):
        style_photo = load_photo(graph, "A portrait in the style", "style.jpg")
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            framing="largest square",
            save_as="style",
            image=style_photo["IMAGE"],
            face_analysis=analysis[0],
        )
        graph.next_column()
        show(graph, "The face is no part of the style", style["preview"])
        graph.node("PreviewAny", title="Report on the style", source=style["report"], extra_height=120)
    files_note(
        graph,
        "With many photos, put them into a folder below `input` and write its name into *folder* instead: **Batch "
        "Images** cuts every photo to the shape of the first. A `.txt` beside a photo is its caption, a `.mask.png` "
        "its mask.",
        "The datasets are in `output/likeness/datasets/person` and `style`. Edit captions and masks there, delete "
        "pictures, queue again: they are read back as they are, and never written a second time.",
    )


def miniature_portrait(graph: Graph) -> None:
    """A drawn person painted by the model that comes with the pack: nothing to download, seconds on a processor."""
    with graph.group("1. The person"):
        photo = load_photo(graph, "A picture of a drawn person", "miniature_person.png")
        analysis = graph.node("LikenessLoadFaceAnalysis", model="miniature", provider="auto")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Model and method"):
        world = graph.node("LikenessLoadMiniature")
        adapter = graph.node("LikenessLoadIdentityAdapter", adapter_file="miniature FaceID (in this pack)")
        model = graph.node(
            "LikenessApplyIdentity",
            model=world["model"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
            lora_strength=1.0,
        )
    with graph.group("3. Prompt"):
        text = "a photo of a smiling person wearing glasses and a red shirt in the snow"
        positive = graph.node("CLIPTextEncode", title="Positive prompt", text=text, clip=world["clip"], room=360)
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text="", clip=world["clip"], room=360)
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=1)
    sample(graph, "4. Portrait", MINIATURE, world["vae"], model["model"], positive, negative, latent[0])
    graph.note(
        "Nothing has to be downloaded. Copy `workflows/miniature_person.png` from the pack's folder into ComfyUI's "
        "`input`, or drop it onto **Load Image**: a person that the model was never shown. `make demo` draws "
        "others.\n\n"
        "The miniature world knows drawn people, 128x128 pixels, and a few dozen words; the help page of **Load "
        "Miniature** lists them. Everything else is as with the large models, so this is the place to try out what a "
        "node does.\n\n"
        "Real photographs need a real model: see the workflow **portrait_faceid**.",
        width=440,
        height=340,
    )


def train_textual_inversion(graph: Graph) -> None:
    """A drawn person learned as a new word, and a portrait with that word."""
    (person, _), world = drawn_person(graph), load_miniature(graph)
    with graph.group("3. Training"):
        trained = graph.node(
            "LikenessTrainTextualInversion",
            dataset=person["dataset"],
            model=world["model"],
            clip=world["clip"],
            vae=world["vae"],
            name="drawn_person",
            steps=400,
            learning_rate=0.005,
            vectors=2,
            preview_every=100,
        )
    show_training(graph, trained)
    use_miniature(graph, world, trained, "a photo of a embedding:drawn_person person in the snow")


def train_dreambooth(graph: Graph) -> None:
    """A drawn person learned by a LoRA, and a portrait with it."""
    (person, _), world = drawn_person(graph, trigger="sks"), load_miniature(graph)
    with graph.group("3. Training"):
        trained = graph.node(
            "LikenessTrainDreamBooth",
            dataset=person["dataset"],
            model=world["model"],
            clip=world["clip"],
            vae=world["vae"],
            name="drawn_person",
            steps=400,
            learning_rate=0.0005,
            rank=8,
            class_pictures=16,
            preview_every=100,
        )
    show_training(graph, trained)
    use_miniature(graph, world, trained, "a photo of a sks person in the snow")


def train_magicapture(graph: Graph) -> None:
    """A drawn person and a style of drawing learned together, and that person in that style."""
    person, analysis = drawn_person(graph)
    with graph.group("2. Portraits in the style"):
        photos = [load_photo(graph, f"Style {n}", f"miniature_style_{n}.png") for n in (1, 2)]
        graph.next_column()
        batch = graph.node("ImageBatch", image1=photos[0]["IMAGE"], image2=photos[1]["IMAGE"])
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            resolution=MINIATURE.side,
            framing="largest square",
            templates="a {} picture of a person",
            image=batch[0],
            face_analysis=analysis[0],
        )
        show(graph, "The face is no part of the style", style["preview"])
    world = load_miniature(graph, first_group=3)
    with graph.group("4. Training"):
        trained = graph.node(
            "LikenessTrainMagiCapture",
            person=person["dataset"],
            style=style["dataset"],
            model=world["model"],
            clip=world["clip"],
            vae=world["vae"],
            name="drawn",
            inversion_steps=300,
            tuning_steps=300,
            rank=8,
            preview_every=100,
            person_templates="a photo of a {} person",
            style_templates="a {} picture of a person",
            face_analysis=analysis[0],
        )
    show_training(graph, trained, number=5)
    text = "a embedding:drawn-style picture of a embedding:drawn-person person"
    use_miniature(graph, world, trained, text, first_group=6)


def identity_report(graph: Graph) -> None:
    """Four drawn portraits, measured against the same seeds without the identity; the best two are saved."""
    with graph.group("1. The person"):
        photo = load_photo(graph, "A picture of a drawn person", "miniature_person.png")
        analysis = graph.node("LikenessLoadFaceAnalysis", model="miniature", provider="auto")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
    with graph.group("2. Model and method"):
        world = graph.node("LikenessLoadMiniature")
        adapter = graph.node("LikenessLoadIdentityAdapter", adapter_file="miniature FaceID (in this pack)")
        model = graph.node(
            "LikenessApplyIdentity",
            model=world["model"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
            lora_strength=1.0,
        )
    with graph.group("3. Prompt"):
        text = "a photo of a smiling person wearing glasses and a red shirt in the snow"
        positive = graph.node("CLIPTextEncode", title="Positive prompt", text=text, clip=world["clip"], room=360)
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text="", clip=world["clip"], room=360)
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=4)
    with graph.group("4. With and without the identity"):
        pictures = []
        for title, source in (("With the identity", model["model"]), ("Without, the same seeds", world["model"])):
            sampler = graph.node(
                "KSampler",
                title=title,
                model=source,
                seed=1,
                steps=MINIATURE.steps,
                cfg=MINIATURE.cfg,
                sampler_name=MINIATURE.sampler,
                scheduler=MINIATURE.scheduler,
                positive=positive[0],
                negative=negative[0],
                latent_image=latent[0],
                denoise=1.0,
            )
            pictures.append(graph.node("VAEDecode", samples=sampler[0], vae=world["vae"]))
    with graph.group("5. Is it the person?"):
        judge = graph.node(
            "LikenessLoadFaceAnalysis", title="The judge: another recogniser", model="miniature-judge", provider="auto"
        )
        report = graph.node(
            "LikenessIdentityReport",
            images=pictures[0][0],
            identity=identity["identity"],
            judge=judge[0],
            baseline=pictures[1][0],
            room=420,
            extra_height=PICTURE,
        )
        best = graph.node(
            "LikenessKeepBestLikeness",
            images=pictures[0][0],
            identity=identity["identity"],
            count=2,
            judge=judge[0],
        )
        graph.next_column()
        graph.node("PreviewAny", title="In words", source=report["markdown"], extra_height=200)
        graph.node("SaveImage", title="The best two", images=best["kept"], filename_prefix="likeness/best", room=400)
    graph.note(
        "Nothing has to be downloaded: copy `workflows/miniature_person.png` from the pack's folder into ComfyUI's "
        "`input`.\n\n"
        "The judge is another recogniser than the one the adapter reads, because an adapter can please its own "
        "recogniser without looking more like the person. With buffalo_l or antelopev2 take *OpenCV (YuNet + SFace)*."
        "\n\n"
        "**Keep Best Likeness** lets only the best pictures go on: upscale those, and save time.",
        width=440,
        height=320,
    )


GRAPHS: list[Callable[[Graph], None]] = [
    portrait_faceid,
    two_people,
    save_identity,
    saved_identity,
    style_reference,
    save_embeds,
    saved_embeds,
    batch_schedule,
    face_keypoints,
    identity_report,
    portrait_dataset,
    miniature_portrait,
    train_textual_inversion,
    train_dreambooth,
    train_magicapture,
]


# --- what they share --------------------------------------------------------------------------------------------------


def drawn_person(graph: Graph, trigger: str = "ohwx") -> tuple[Node, Node]:
    """A dataset of the three pictures of a drawn person that come with the pack, and what found the faces."""
    with graph.group("1. Pictures of the person"):
        photos = [load_photo(graph, f"Picture {n}", f"miniature_person_{n}.png") for n in (1, 2, 3)]
        graph.next_column()
        batch = photos[0]["IMAGE"]
        for photo in photos[1:]:
            batch = graph.node("ImageBatch", image1=batch, image2=photo["IMAGE"])[0]
        analysis = graph.node("LikenessLoadFaceAnalysis", model="miniature", provider="auto")
        person = graph.node(
            "LikenessPortraitDataset",
            trigger_word=trigger,
            resolution=MINIATURE.side,
            framing="largest square",
            templates="a photo of a {} person",
            smallest_face=32,
            image=batch,
            face_analysis=analysis[0],
        )
        show(graph, "Picture, mask, caption, verdict", person["preview"])
    return person, analysis


def load_miniature(graph: Graph, first_group: int = 2) -> Node:
    """The model that comes with the pack."""
    with graph.group(f"{first_group}. Model"):
        return graph.node("LikenessLoadMiniature")


def show_training(graph: Graph, trained: Node, number: int = 4) -> None:
    """Losses, sample pictures and file names of a training."""
    with graph.group(f"{number}. What was learned"):
        show(graph, "Losses", trained["losses"])
        show(graph, "Samples", trained["samples"])
        graph.next_column()
        graph.node("PreviewAny", title="Files and words", source=trained["files"], extra_height=100)


def use_miniature(graph: Graph, world: Node, trained: Node, text: str, first_group: int = 5) -> None:
    """A portrait by the trained model, and the note of all training graphs."""
    with graph.group(f"{first_group}. Prompt"):
        positive = graph.node("CLIPTextEncode", title="Positive prompt", text=text, clip=trained["clip"], room=360)
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text="", clip=trained["clip"], room=360)
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=1)
    title = f"{first_group + 1}. Portrait"
    sample(graph, title, MINIATURE, world["vae"], trained["model"], positive, negative, latent[0])
    graph.note(
        "Nothing has to be downloaded. Copy the pictures `miniature_*.png` from the pack's folder `workflows` into "
        "ComfyUI's `input`, then queue.\n\n"
        "Cancel whenever you like: queued again, the training goes on where it stopped. Its run is in "
        "`output/likeness/runs`.\n\n"
        "For real photographs put **Load Checkpoint** in the place of **Load Miniature**, a face analysis such as "
        "buffalo_l in the place of *miniature*, the resolution of the model (512 or 1024) into **Portrait Dataset**, "
        "and take the steps and the learning rate from the help page of the Train node.",
        width=440,
        height=380,
    )


def load_photo(graph: Graph, title: str, name: str) -> Node:
    """A picture from ComfyUI's input folder."""
    return graph.node("LoadImage", title=title, image=name, extra_height=PICTURE)


def load_analysis(graph: Graph, pack: str) -> Node:
    """InsightFace's networks."""
    return graph.node("LikenessLoadFaceAnalysis", model=pack, provider="auto", models=files(pack))


def load_checkpoint(graph: Graph, base: Base) -> Node:
    """The base model."""
    assert base.checkpoint is not None
    needed = files(base.checkpoint)
    return graph.node("CheckpointLoaderSimple", ckpt_name=needed[0].name, models=needed)


def load_adapter(graph: Graph, name: str) -> Node:
    """An adapter of the registry."""
    needed = files(name)
    return graph.node("LikenessLoadIdentityAdapter", adapter_file=needed[0].name, models=needed)


def load_encoder(graph: Graph) -> Node:
    """The encoder that IP-Adapter Plus was trained with."""
    needed = files("clip-vit-h")
    return graph.node("CLIPVisionLoader", clip_name=needed[0].name, models=needed)


def show(graph: Graph, title: str, images: Output) -> Node:
    """Pictures on the canvas."""
    return graph.node("PreviewImage", title=title, images=images, extra_height=PICTURE)


def prompts(graph: Graph, checkpoint: Node, text: str) -> tuple[Node, Node]:
    """The positive and the negative prompt."""

    def prompt(title: str, text: str) -> Node:
        return graph.node("CLIPTextEncode", title=title, text=text, clip=checkpoint["CLIP"], room=360)

    return prompt("Positive prompt", text), prompt("Negative prompt", NEGATIVE)


def sample(
    graph: Graph,
    title: str,
    base: Base,
    vae: Output,
    model: Output,
    positive: Node,
    negative: Node,
    latent: Output,
) -> None:
    """The last group: from a latent to saved pictures."""
    with graph.group(title):
        sampler = graph.node(
            "KSampler",
            model=model,
            seed=1,
            steps=base.steps,
            cfg=base.cfg,
            sampler_name=base.sampler,
            scheduler=base.scheduler,
            positive=positive[0],
            negative=negative[0],
            latent_image=latent,
            denoise=1.0,
        )
        decoded = graph.node("VAEDecode", samples=sampler[0], vae=vae)
        graph.next_column()
        graph.node("SaveImage", images=decoded[0], filename_prefix="likeness/portrait", room=400, extra_height=410)


def portrait(
    graph: Graph,
    base: Base,
    checkpoint: Node,
    model: Output,
    text: str,
    *,
    first_group: int,
    size: tuple[int, int] | None = None,
) -> None:
    """The last two groups of most graphs: a prompt, and one portrait after it."""
    width, height = size or (base.side, base.side)
    with graph.group(f"{first_group}. Prompt"):
        positive, negative = prompts(graph, checkpoint, text)
        latent = graph.node("EmptyLatentImage", width=width, height=height, batch_size=1)
    sample(graph, f"{first_group + 1}. Portrait", base, checkpoint["VAE"], model, positive, negative, latent[0])


def files(pattern: str) -> tuple[ModelFile, ...]:
    """The registry's entries for a name or a group; of a face pack only the files that are read."""
    records = import_module("likeness.models_download").select(pattern)
    read = [record for record in records if len(records) == 1 or "required" in record.notes]
    return tuple(ModelFile(record.filename, record.url, record.folder) for record in read)


def files_note(graph: Graph, *remarks: str) -> None:
    """What to know, what to download and where it goes: the face packs last."""
    needed = sorted(graph.models, key=lambda file: file.directory.startswith("insightface"))
    lines = [line for remark in remarks for line in (remark, "")]
    lines += ["## Files this workflow needs", "", "| file | folder below `models/` |", "| --- | --- |"]
    lines += [f"| [{file.name}]({file.url}) | `{file.directory}` |" for file in needed]
    text_height = sum(30 + 24 * (len(remark) // 50) for remark in remarks)
    graph.note("\n".join(lines), width=440, height=260 + 40 * len(needed) + text_height)


def describe(graph_function: Callable[[Graph], None], info: ObjectInfo) -> Graph:
    """Run one of the descriptions above."""
    [version] = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    graph = Graph(info, version=version, host_version=HOST_VERSION)
    graph_function(graph)
    return graph


def write_all(info: ObjectInfo, folder: Path) -> list[Path]:
    """Write every graph into `folder`; returns the paths."""
    return [path for function in GRAPHS for path in write(describe(function, info), info, folder, function.__name__)]


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None:
        sys.exit(f"workflows/_build.py {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        nodes = comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        for path in write_all(comfyui.object_info(nodes, ours), HERE):
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
