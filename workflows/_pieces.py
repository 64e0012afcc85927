"""What the graphs share: base models, and groups of nodes that always come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from _graph import NOTE_WIDTH, Graph, ModelFile, Node, Output

PICTURE = 330  # room for an image in a node
SIDES = ("left", "right")


@dataclass(frozen=True)
class Base:
    """A base model, the settings that suit it, and the size it was trained for."""

    checkpoint: str | None  # in the registry; the miniature comes with the pack
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    side: int
    negative: str


NEGATIVE = "monochrome, lowres, bad anatomy, worst quality"
SD15 = Base("sd15", 30, 7.5, "ddim", "ddim_uniform", 512, NEGATIVE)
SDXL = Base("realvisxl-v5", 30, 5.0, "dpmpp_2m", "karras", 1024, NEGATIVE)
MINIATURE = Base(None, 20, 4.0, "euler", "normal", 128, negative="")


@dataclass(frozen=True)
class Start:
    """What sampling starts from: the two prompts and a latent."""

    positive: Node
    negative: Node
    latent: Node


def load_photo(graph: Graph, title: str, name: str) -> Node:
    """An image from ComfyUI's input folder."""
    return graph.node("LoadImage", title=title, image=name, extra_height=PICTURE)


def load_analysis(graph: Graph, pack: str, asked: Output | None = None) -> Node:
    """InsightFace's networks. asked: what a subgraph's user chooses in their place."""
    return graph.node("LikenessLoadFaceAnalysis", model=asked or pack, provider="auto", models=files(pack))


def load_miniature_analysis(graph: Graph) -> Node:
    """The face analysis that comes with the pack."""
    return graph.node("LikenessLoadFaceAnalysis", model="miniature", provider="auto")


def find_person(graph: Graph, analysis: Node, photos: Output | Sequence[Node], **settings: str) -> tuple[Node, Node]:
    """The faces in a photo or several, and the identity of the one that is taken."""
    given = {"image": photos} if isinstance(photos, Output) else images(photos)
    faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], **given)
    return faces, graph.node("LikenessIdentityFromPhotos", faces=faces["faces"], **settings)


def one_person(graph: Graph, pack: str, shown: str = "Which face was taken") -> tuple[Node, Node, Node]:
    """The first group of most graphs: a photo, its faces and the identity. Returns analysis, faces, identity."""
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        analysis = load_analysis(graph, pack)
        graph.next_column()
        faces, identity = find_person(graph, analysis, photo["IMAGE"])
        show(graph, shown, faces["preview"])
    return analysis, faces, identity


def two_people(graph: Graph, pack: str) -> list[tuple[Node, Node]]:
    """The first group of graphs with two people: (faces, identity) of each side, in the order of `SIDES`."""
    with graph.group("1. The two people"):
        photos = [load_photo(graph, f"The person on the {side}", f"person_{side}.jpg") for side in SIDES]
        graph.next_column()
        analysis = load_analysis(graph, pack)
        found = [
            find_person(graph, analysis, photo["IMAGE"], name=side) for side, photo in zip(SIDES, photos, strict=True)
        ]
        graph.next_column()
        for side, (faces, _) in zip(SIDES, found, strict=True):
            show(graph, f"Which face was taken ({side})", faces["preview"])
    return found


def images(photos: Sequence[Node]) -> dict[str, Output]:
    """Photos, of any size, as the inputs of Find Faces or Portrait Dataset."""
    names = ["image", *(f"image_{number}" for number in range(2, len(photos) + 1))]
    return {name: photo["IMAGE"] for name, photo in zip(names, photos, strict=True)}


def load_checkpoint(graph: Graph, base: Base) -> Node:
    """The base model."""
    assert base.checkpoint is not None
    needed = files(base.checkpoint)
    return graph.node("CheckpointLoaderSimple", ckpt_name=needed[0].name, models=needed)


def load_adapter(graph: Graph, name: str, asked: Output | None = None) -> Node:
    """An adapter of the registry. asked: what a subgraph's user chooses in its place."""
    needed = files(name)
    folder, file = needed[0].directory, needed[0].name
    choice = file if folder == "ipadapter" else f"{folder}/{file}"
    return graph.node("LikenessLoadIdentityAdapter", adapter_file=asked or choice, models=needed)


def load_pulid(graph: Graph, name: str = "pulid-v1") -> Node:
    """A version of PuLID, and what it finds beside its own file: EVA02-CLIP and a face parsing network."""
    needed = files(name)
    beside = (*files("eva02-clip-l-336"), *files("facexlib/parsing_bisenet"))
    return graph.node("LikenessLoadIdentityAdapter", adapter_file=f"pulid/{needed[0].name}", models=(*needed, *beside))


def load_photoverse(graph: Graph) -> Node:
    """PhotoVerse, and the face parsing network that it finds beside its own file."""
    needed = files("photoverse-unofficial")
    beside = files("facexlib/parsing_bisenet")
    choice = f"{needed[0].directory}/{needed[0].name}"
    return graph.node("LikenessLoadIdentityAdapter", adapter_file=choice, models=(*needed, *beside))


def load_vit_l(graph: Graph) -> Node:
    """The encoder that PhotoVerse was trained with."""
    needed = files("clip-vit-l")
    return graph.node("CLIPVisionLoader", clip_name=needed[0].name, models=needed)


def load_encoder(graph: Graph) -> Node:
    """The encoder that IP-Adapter Plus and StoryMaker were trained with."""
    needed = files("clip-vit-h")
    return graph.node("CLIPVisionLoader", clip_name=needed[0].name, models=needed)


def show(graph: Graph, title: str, images: Output) -> Node:
    """Images on the canvas."""
    return graph.node("PreviewImage", title=title, images=images, extra_height=PICTURE)


def prompts(
    graph: Graph, base: Base, clip: Output, text: str | Output, negative: Output | None = None
) -> tuple[Node, Node]:
    """The positive prompt, and the base model's negative one unless it is given."""
    return (
        graph.node("CLIPTextEncode", title="Positive prompt", text=text, clip=clip, room=360),
        graph.node("CLIPTextEncode", title="Negative prompt", text=negative or base.negative, clip=clip, room=360),
    )


def prompt(
    graph: Graph,
    number: int,
    base: Base,
    clip: Output,
    text: str | Output,
    *,
    size: tuple[int | Output, int | Output] | None = None,
    batch_size: int = 1,
    negative: Output | None = None,
) -> Start:
    """The group before the sampling: what shall be made, and how large."""
    width, height = size or (base.side, base.side)
    with graph.group(f"{number}. Prompt"):
        encoded = prompts(graph, base, clip, text, negative)
        latent = graph.node("EmptyLatentImage", width=width, height=height, batch_size=batch_size)
    return Start(*encoded, latent)


def sample(
    graph: Graph,
    base: Base,
    vae: Output,
    model: Output,
    start: Start,
    title: str | None = None,
    **asked: Output | float,
) -> Node:
    """From a latent to images. asked: what comes in place of the start's prompts and of the base model's settings."""
    settings = {
        "positive": start.positive[0],
        "negative": start.negative[0],
        "seed": 1,
        "steps": base.steps,
        "cfg": base.cfg,
        "sampler_name": base.sampler,
        "scheduler": base.scheduler,
        "denoise": 1.0,
    }
    sampler = graph.node(
        "KSampler",
        title=title,
        model=model,
        latent_image=start.latent[0],
        **{**settings, **asked},
    )
    return graph.node("VAEDecode", samples=sampler[0], vae=vae)


def sample_and_save(
    graph: Graph,
    title: str,
    base: Base,
    vae: Output,
    model: Output,
    start: Start,
    below_note: bool = False,
    **asked: Output,
) -> None:
    """The last group of most graphs: from a latent to saved images. asked: see `sample`."""
    with graph.group(title):
        pictures = sample(graph, base, vae, model, start, **asked)
        graph.next_column()
        save(graph, pictures[0], "portrait", below_note)


def save(graph: Graph, pictures: Output, name: str, below_note: bool = False) -> None:
    """The result on the canvas and in ComfyUI's output."""
    room = {"room": NOTE_WIDTH, "extra_height": 510} if below_note else {"room": 400, "extra_height": 410}
    graph.node("SaveImage", images=pictures, filename_prefix=f"likeness/{name}", below_note=below_note, **room)


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
    start = prompt(graph, first_group, base, checkpoint["CLIP"], text, size=size)
    sample_and_save(graph, f"{first_group + 1}. Portrait", base, checkpoint["VAE"], model, start)


def files(pattern: str) -> tuple[ModelFile, ...]:
    """The registry's entries for a name or a group; of a face pack only the files that are read."""
    records = import_module("likeness.models_download").select(pattern)
    read = [record for record in records if len(records) == 1 or "required" in record.notes]
    return tuple(
        ModelFile(record.filename, record.url or record.page, record.folder, pattern if record.url else "")
        for record in read
    )


def files_note(graph: Graph, *remarks: str) -> None:
    """The steps, what to download and where it goes (the face packs last), and what else to know."""
    needed = sorted(graph.models, key=lambda file: file.directory.startswith("insightface"))
    commands = dict.fromkeys(file.command for file in needed if file.command)
    steps = [["Get the files", "", f"`likeness models get {' '.join(commands)}`", "", *_table(needed)]]
    steps += [["Choose your images in Load Image"]] * graph.has("LoadImage")
    steps += [["Press Run"]]
    lines = [line for number, (title, *more) in enumerate(steps, 1) for line in (f"# {number}. {title}", *more, "")]
    if remarks:
        lines += ["# Good to know", ""]
    graph.note("\n".join([*lines, *(line for remark in remarks for line in (remark, ""))]))


def _table(needed: Sequence[ModelFile]) -> list[str]:
    rows = [f"| [{file.name}]({file.url}) | `{file.directory}` |" for file in needed]
    return ["| file | folder below `models/` |", "| --- | --- |", *rows]


def halves(graph: Graph, width: int, height: int, seam: int) -> tuple[Node, Node]:
    """Masks of the left and the right half of an image, soft along the seam; they fit images of any size."""
    nowhere = graph.node("SolidMask", title="The whole image", value=0.0, width=width, height=height)
    half = graph.node("SolidMask", title="Its left half", value=1.0, width=width // 2 + seam // 2, height=height)
    soft = graph.node("FeatherMask", title="Soft towards the middle", mask=half[0], right=seam)
    left = graph.node(
        "MaskComposite", title="Mask of the left person", destination=nowhere[0], source=soft[0], operation="add"
    )
    return left, graph.node("InvertMask", title="Mask of the right person", mask=left[0])


def apply_each(
    graph: Graph,
    model: Output,
    adapter: Node,
    identities: Sequence[Node],
    masks: Sequence[Node],
    **asked: Output | float,
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
