"""StoryMaker: who is in the image, what they look like, and what they wear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..adapters.image_prep import CLIP_SIZE, Crop, to_rgb, to_square
from ..adapters.storymaker.body import NOISE, cut_out_character
from ..adapters.storymaker.cast import OPTIONS, STRONGEST, Cast, Character
from ..checks import EMPTY_MASK, as_mask, require_painted
from ..errors import LikenessError
from ..faces.identity import Identity
from .node import Node
from .progress import counter
from .references import CATEGORY, Options
from .schema import IdentitySocket, OptionsSocket, options_input, region_input, schema

MaskSocket = io.Custom("MASK,IMAGE")  # masks of other packs may come as images


class StoryMakerCharacter(Node):
    """One character for Apply Identity's options; several in a chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessStoryMakerCharacter",
            display_name=OPTIONS,
            category=CATEGORY,
            description="Hair, clothes and body of a character for StoryMaker. Plugs into the options of Apply "
            "Identity. For two or three people chain these nodes: each adds one, in this order.",
            search_aliases=["StoryMaker", "consistent character", "clothes swap", "outfit", "virtual try-on", "body"],
            inputs=[
                io.Float.Input(
                    "face_strength",
                    default=1.0,
                    min=0.0,
                    max=STRONGEST,
                    step=0.05,
                    tooltip="Strength of the face; 1 is official, 0 leaves the face to the prompt.",
                ),
                io.Float.Input(
                    "body_strength",
                    default=1.0,
                    min=0.0,
                    max=STRONGEST,
                    step=0.05,
                    tooltip="Strength of hair, clothes and body; 1 is official, 0 leaves them to the prompt.",
                ),
                io.Boolean.Input(
                    "seen_from_behind",
                    default=False,
                    tooltip="The character's face is not visible: no identity is needed. Say so in the prompt too.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The character from head to foot, or what is to be kept of it. Several images of one "
                    "character may come as a batch. Without one, hair and clothes are left to the prompt.",
                ),
                MaskSocket.Input(
                    "mask",
                    optional=True,
                    tooltip="Which part of the image is the character, in white; soft edges are kept. Without one the "
                    "character is found by Mask R-CNN (models/segmentation).",
                ),
                io.Image.Input(
                    "clothes",
                    optional=True,
                    tooltip="Clothes to wear in place of those in 'image': the whole of this image is used.",
                ),
                IdentitySocket.Input(
                    "identity",
                    optional=True,
                    tooltip="Whose face it is. Empty: the identity that is connected to Apply Identity.",
                ),
                region_input(
                    "Where in the image the character may appear. Empty: the prompt and StoryMaker decide, "
                    "as in the official code."
                ),
                options_input(f"From the {OPTIONS} before this one."),
            ],
            outputs=[
                OptionsSocket.Output(display_name="options", tooltip="For Apply Identity, or for the next character."),
                io.Image.Output(display_name="body", tooltip="What StoryMaker sees of the body."),
            ],
        )

    @classmethod
    def execute(
        cls,
        face_strength: float,
        body_strength: float,
        seen_from_behind: bool,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        clothes: Tensor | None = None,
        identity: Identity | None = None,
        region: Tensor | None = None,
        options: Options | None = None,
    ) -> io.NodeOutput:
        """Cut the body out, and put the character behind those that came before."""
        if identity is not None and seen_from_behind:
            raise LikenessError("A character seen from behind has no face: disconnect identity, or turn it off.")
        if mask is not None and image is None:
            raise LikenessError("The input mask needs an image: connect the character's image to the input image.")
        before = Options(Cast()) if options is None else options
        if not isinstance(before.reference, Cast):
            raise LikenessError(f"The options are those of another system: connect the {OPTIONS} before this one.")
        bodies = _bodies(image, mask, clothes, identity)
        character = Character(
            identity, bodies, face_strength, body_strength, _region(region), faceless=seen_from_behind
        )
        cast = Cast((*before.reference.characters, character))
        return io.NodeOutput(replace(before, reference=cast), _shown(bodies))


def _bodies(
    image: Tensor | None, mask: Tensor | None, clothes: Tensor | None, identity: Identity | None
) -> tuple[Tensor, ...]:
    """What is shown of the body: clothes as they are, else the character cut out of its images."""
    if clothes is not None:
        return tuple(_as_bytes(to_rgb(clothes, "clothes")))
    if image is None:
        return ()
    pictures = _as_bytes(to_rgb(image, "image"))
    masks = _found(pictures, identity) if mask is None else _given(mask, pictures)
    return tuple(
        torch.from_numpy(cut_out_character(picture.numpy(), one, NOISE))
        for picture, one in zip(pictures, masks, strict=True)
    )


def _given(mask: Tensor, pictures: Tensor) -> list[np.ndarray]:
    """One mask for every image, (H, W) uint8, of a MASK or of an image's first channel.

    LikenessError for one that is empty, white everywhere, or of another size.
    """
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] in (1, 3, 4):
        mask = mask[..., 0]
    mask = as_mask(mask, "The mask")
    if len(mask) not in (1, len(pictures)):
        raise LikenessError(f"There are {len(mask)} masks for {len(pictures)} images: connect one for each image.")
    height, width = pictures.shape[1:3]
    if tuple(mask.shape[1:]) != (height, width):
        raise LikenessError(
            f"The mask is {mask.shape[2]} x {mask.shape[1]} and the image {width} x {height} (width x height): "
            f"connect a mask of the same size ({EMPTY_MASK})."
        )
    require_painted(mask, "The mask", NOISE / 255)
    if bool((mask >= 0.5).flatten(1).all(1).any()):
        raise LikenessError(
            "The mask is white everywhere, so that the background would count as clothes: paint the character alone, "
            "or disconnect it, and the character is found automatically."
        )
    masks = _as_bytes(mask).numpy()
    return [masks[min(number, len(masks) - 1)] for number in range(len(pictures))]


def _found(pictures: Tensor, identity: Identity | None) -> list[np.ndarray]:
    """The same from Mask R-CNN: the person with the identity's face where the image is one of its photos, else the
    largest one. LikenessError where there is nobody."""
    from ..faces.people import FILE, load_segmenter
    from ..injection.comfy import Managed
    from ..models_download import locate, select

    [model] = select(FILE)
    if (path := locate(model)) is None:
        raise LikenessError(
            "No mask is connected, and the network that finds people is not there: connect a mask, or get the network "
            f"with `likeness models get {model.name}`."
        )
    segmenter = load_segmenter(path)
    managed = Managed(segmenter.network)  # alive as long as the network is used, or the host forgets it
    managed.load()
    step, masks = counter(len(pictures)), []
    for number, picture in enumerate(pictures, 1):
        mask = segmenter.people(picture.numpy()).of_face(_face_box(identity, picture))
        if mask is None:
            which = f"image {number} of the batch" if len(pictures) > 1 else "the image"
            raise LikenessError(
                f"No person was found in {which}: use one that shows the character well, connect a mask, or connect it "
                "to clothes if it shows clothes alone."
            )
        masks.append(mask.astype(np.uint8) * 255)
        step()
    return masks


def _face_box(identity: Identity | None, picture: Tensor) -> np.ndarray | None:
    """Where the face is, when the image has the size of one photo of the identity alone."""
    if identity is None:
        return None
    of_size = (identity.photo_sizes == torch.tensor(picture.shape[:2])).all(1).nonzero().flatten()
    return identity.boxes[of_size[0]].numpy() if len(of_size) == 1 else None


def _region(region: Tensor | None) -> Tensor | None:
    if region is None:
        return None
    region = as_mask(region, "The region")
    require_painted(region, "The region")
    return region[:1]


def _shown(bodies: tuple[Tensor, ...]) -> Tensor:
    """The bodies as the encoder sees them; white without any."""
    if not bodies:
        return torch.ones(1, CLIP_SIZE, CLIP_SIZE, 3)
    return torch.cat([to_square(body.unsqueeze(0) / 255, CLIP_SIZE, Crop.SQUASH) for body in bodies])


def _as_bytes(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8)


NODES = [StoryMakerCharacter]
