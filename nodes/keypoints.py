"""Images of the five keypoints of a face, as IdentityNet and other nets read them."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..errors import LikenessError, logger
from ..faces import Identity
from ..faces.found import Drawn, FoundFaces, keypoint_drawings, keypoints_of, to_image_batch
from ..faces.keypoints import Drawing, KeypointCanvas, Pose, read_points, write_points
from ..injection.masks import LATENT_PIXELS
from .choices import choices, finite, member
from .faces import CATEGORY, found_of
from .node import Node
from .schema import FacesSocket, IdentitySocket, advanced, schema

log = logger(__name__)


class FaceKeypoints(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str, other: str) -> Any:
            return io.Int.Input(
                name,
                default=0,
                min=0,
                max=16384,
                step=8,
                tooltip=(
                    f"The {name} of the image in pixels; 0 follows {other} in the photo's proportions, or is the "
                    "photo's own if both are 0. Use the size of the image you make: lines and dots do not scale "
                    "with it."
                ),
            )

        def factor(name: str, default: float, least: float, most: float, step: float, tooltip: str) -> Any:
            return advanced(
                io.Float.Input(name, default=default, min=least, max=most, step=step, optional=True, tooltip=tooltip)
            )

        return schema(
            node_id="LikenessFaceKeypoints",
            display_name="Face Keypoints",
            category=CATEGORY,
            description=(
                "Draws the five keypoints of the chosen faces as InstantID's ControlNet expects them: where the face "
                "is, and how it is turned. They come from a photo, which may show another person, from a saved "
                "identity, or from points that you write. A photo is fitted into the image and centred, never "
                "stretched."
            ),
            inputs=[
                side("width", "height"),
                side("height", "width"),
                FacesSocket.Input(
                    "faces", optional=True, tooltip="From Find Faces, with a detector that gives keypoints."
                ),
                IdentitySocket.Input(
                    "identity",
                    optional=True,
                    tooltip="Draws this person's own keypoints, of the first photo: where no faces are connected, and "
                    "for photos without a face.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent you sample: the image gets its size, whatever width and height say.",
                ),
                advanced(
                    io.Int.Input(
                        "long_side",
                        default=0,
                        min=0,
                        max=16384,
                        step=64,
                        optional=True,
                        tooltip="If width and height are 0: scales the photo to this long side, both sides to a "
                        "multiple of 64, as InstantID's own code does (to 1280 or 1024). 0 keeps the photo's size.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "drawn",
                        options=choices(Drawn),
                        default=Drawn.CHOSEN.value,
                        optional=True,
                        tooltip="The face that Find Faces chose, or all that it found in the photo.",
                    )
                ),
                factor("move_x", 0.0, -1.0, 1.0, 0.01, "Moves the face to the right, as a share of the width."),
                factor("move_y", 0.0, -1.0, 1.0, 0.01, "Moves the face down, as a share of the height."),
                factor("scale", 1.0, 0.05, 10.0, 0.01, "Makes the face larger or smaller, about its centre."),
                factor("rotate", 0.0, -180.0, 180.0, 1.0, "Turns the face clockwise, in degrees, about its centre."),
                advanced(
                    io.Boolean.Input("mirror", default=False, optional=True, tooltip="Mirrors the face in place.")
                ),
                advanced(
                    io.String.Input(
                        "points",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Points of your own in place of a photo's, in pixels of the image: five x,y in a "
                        "line for each face (the eye at the left, the other eye, nose, left and right corner of the "
                        "mouth), a blank line between two images. The output points gives a line to start from.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="One image on black for each photo; skipped photos have none.",
                ),
                io.String.Output(
                    "written",
                    display_name="points",
                    tooltip="The points that were drawn, as text that the input points takes.",
                ),
                io.Int.Output("drawn_width", display_name="width", tooltip="Width of the image in pixels."),
                io.Int.Output("drawn_height", display_name="height", tooltip="Height of the image in pixels."),
            ],
            search_aliases=["InstantID", "kps", "face landmarks"],
        )

    @classmethod
    def execute(
        cls,
        faces: FoundFaces | None = None,
        width: int = 0,
        height: int = 0,
        identity: Identity | None = None,
        latent: Any = None,
        long_side: int = 0,
        drawn: str = Drawn.CHOSEN.value,
        move_x: float = 0.0,
        move_y: float = 0.0,
        scale: float = 1.0,
        rotate: float = 0.0,
        mirror: bool = False,
        points: str = "",
    ) -> io.NodeOutput:
        finite(move_x=move_x, move_y=move_y, scale=scale, rotate=rotate)
        canvas = KeypointCanvas(width, height, long_side) if latent is None else _canvas_of(latent)
        found = None if faces is None else found_of(faces)
        which = member(Drawn, drawn, "drawn")
        if points.strip():
            size = _size_of_points(canvas, found, identity)
            drawings = [Drawing(image, *size) for image in read_points(points)]
        elif found is not None:
            drawings = keypoint_drawings(found, canvas, which, identity)
            _warn_of_skipped(found, len(drawings))
        elif identity is not None:
            drawings = [keypoints_of(identity, canvas)]
        else:
            raise LikenessError(
                "Face Keypoints has nothing to draw: connect faces from Find Faces, an identity, or write points."
            )
        pose = Pose((move_x, move_y), scale, rotate, mirror)
        drawings = [drawing.posed(pose) for drawing in drawings]
        if blank := [number for number, drawing in enumerate(drawings, 1) if not drawing.image().any()]:
            raise LikenessError(
                f"Nothing of the face is left in image {blank[0]}: move it less, or make it larger or smaller."
            )
        images = to_image_batch([drawing.image() for drawing in drawings])
        return io.NodeOutput(
            images, write_points([drawing.faces for drawing in drawings]), images.shape[2], images.shape[1]
        )


def _canvas_of(latent: Any) -> KeypointCanvas:
    """The size of the image that a LATENT becomes."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, torch.Tensor) or samples.ndim < 4:
        raise LikenessError("The input latent is not an image latent: connect Empty Latent Image or VAE Encode.")
    return KeypointCanvas(samples.shape[-1] * LATENT_PIXELS, samples.shape[-2] * LATENT_PIXELS)


def _size_of_points(canvas: KeypointCanvas, found: FoundFaces | None, identity: Identity | None) -> tuple[int, int]:
    """Where points of a text lie: on the canvas, whose missing sides a photo or an identity gives."""
    if found is not None:
        return canvas.of(found.photos[0].shape[1], found.photos[0].shape[0])
    if identity is not None:
        height, width = identity.photo_sizes[0].tolist()
        return canvas.of(width, height)
    if not canvas.width or not canvas.height:
        raise LikenessError("The written points need a size: enter width and height, or connect the latent.")
    return canvas.width, canvas.height


def _warn_of_skipped(found: FoundFaces, drawn: int) -> None:
    if drawn == len(found.photos):
        return
    skipped = [number for number, face in enumerate(found.chosen, 1) if face is None]
    log.warning(
        "[likeness] Photo %s has no keypoint image, so those of later photos move up: make as many images as there "
        "are keypoint images, connect an identity whose keypoints stand in, or leave the photo out.",
        ", ".join(map(str, skipped)),
    )


NODES: list[type[io.ComfyNode]] = [FaceKeypoints]
