"""The finishing steps of a portrait: faces restored without losing the person, super-resolution, faces pasted back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .. import models_download
from ..checks import as_mask
from ..errors import LikenessError, logger
from ..faces import Face, FaceAnalysis, Identity, adopt_analysis, to_photos
from ..faces.found import FoundFaces
from ..faces.parsing import FaceParser
from ..restoration.colour import ColourMatch
from ..restoration.crops import CropFraming, paste_crops
from ..restoration.guard import guard_of
from ..restoration.paste import Shape
from ..restoration.preview import marked, middles, side_by_side
from ..restoration.restore import Fate, PasteOptions, Restored, restore_faces
from ..restoration.upscale import resized
from .choices import choices, member, must_exist, named
from .faces import found_of
from .masks import managed_parser, parsers
from .node import Node
from .progress import counter
from .restorers import KIND, ManagedRestorer, ManagedUpscaler, restorer_files, restorer_on_socket, upscaler_of
from .schema import (
    FaceAnalysisSocket,
    FacesSocket,
    IdentitySocket,
    RestorerSocket,
    advanced,
    region_input,
    schema,
    share_input,
)

log = logger(__name__)
CATEGORY = "likeness/restoration"
LARGEST_SCALE = 8.0


# --- loading


class RestorerPrecision(Enum):
    """In which precision a restorer computes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@must_exist(file=partial(models_download.find_file, KIND))
class LoadFaceRestorer(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadFaceRestorer",
            display_name="Load Face Restorer",
            category=CATEGORY,
            description=(
                "Loads GFPGAN (v1.2 to v1.4), RestoreFormer or CodeFormer from models/facerestore_models and shows its "
                "licence: CodeFormer is for non-commercial use only. `likeness models get gfpgan-v1.4` fetches the one "
                "to begin with."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=restorer_files(),
                    tooltip=(
                        "A restorer's file. GFPGAN keeps a person better, CodeFormer repairs more and may be used "
                        "non-commercially only."
                    ),
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=choices(RestorerPrecision),
                        default=RestorerPrecision.FLOAT32.value,
                        tooltip="bfloat16 takes half the memory. float16 overflows, so float32 is used for it.",
                    )
                ),
            ],
            outputs=[
                RestorerSocket.Output(
                    "restorer", display_name="restorer", tooltip="For Restore Faces and Upscale Portrait."
                )
            ],
            search_aliases=["GFPGAN", "CodeFormer", "RestoreFormer", "Load Face Restore Model", "ReActor"],
        )

    @classmethod
    def execute(cls, file: str, precision: str = RestorerPrecision.FLOAT32.value) -> io.NodeOutput:
        from ..restoration.restorers import load_restorer, precision_of

        wanted = getattr(torch, member(RestorerPrecision, precision, "precision").value)
        restorer = load_restorer(models_download.find_file(KIND, named(file, "file")))
        dtype, note = precision_of(wanted, restorer.kind.title)
        if note:
            log.warning("[likeness] %s", note)
        log.info("[likeness] %s from %s; licence: %s", restorer.kind.title, restorer.name, restorer.kind.licence)
        use = {True: "allowed", False: "not allowed", None: "in parts: read the licence"}[restorer.kind.commercial]
        said = [
            f"{restorer.kind.title} ({restorer.name})",
            f"licence: {restorer.kind.licence}",
            f"commercial use: {use}",
        ]
        return io.NodeOutput(
            ManagedRestorer(restorer, dtype), ui=ui.PreviewText("\n".join([*said, *filter(None, [note])]))
        )


# --- what is asked of a restoration, in two nodes


class Whose(Enum):
    """Which faces are restored."""

    ALL = "all faces"
    CHOSEN = "the chosen face"


class IfFaceless(Enum):
    """What happens to an image without a face."""

    KEEP = "keep picture"
    ERROR = "error"


@dataclass(frozen=True, eq=False)
class Wanted:
    """The inputs about restoration of both nodes, as `restoration_inputs` describes them."""

    people: str = Whose.ALL.value
    strength: float = 1.0
    identity_guard: float = 0.5
    fidelity: float = 0.5
    paste: str = Shape.FACE.value
    colours: str = ColourMatch.NONE.value
    texture: float = 0.0
    adain: bool = True
    if_none: str = IfFaceless.KEEP.value
    batch_size: int = 4
    faces: FoundFaces | None = None
    identity: Identity | None = None
    region: Tensor | None = None

    def faces_of(
        self, photos: Sequence[np.ndarray], analysis: FaceAnalysis, step: Callable[[], None]
    ) -> list[list[Face]]:
        """The faces that are meant in each image: of Find Faces where it is connected, else all that are there."""
        whose = member(Whose, self.people, "people")
        if self.faces is not None:
            found = found_of(self.faces)
            if [photo.shape for photo in found.photos] != [photo.shape for photo in photos]:
                raise LikenessError(
                    f"Find Faces was given {_sizes(found.photos)} and the image is {_sizes(photos)}: connect the same "
                    "images to both."
                )
            if whose is Whose.ALL:
                meant = found.all_faces
            else:
                meant = [
                    [face] if face and number not in found.whole else [] for number, face in enumerate(found.chosen)
                ]
        elif whose is Whose.CHOSEN:
            raise LikenessError("The chosen face is the one of Find Faces: connect its faces, or restore all faces.")
        else:
            meant = []
            for number, photo in enumerate(photos):
                search = analysis.search(photo, number, embed=False)
                if not search.faces and member(IfFaceless, self.if_none, "if_none") is IfFaceless.ERROR:
                    raise LikenessError(search.explain(f"image {number + 1}"))
                meant.append(sorted(search.faces, key=lambda face: -face.area))
                step()
        if member(IfFaceless, self.if_none, "if_none") is IfFaceless.ERROR and not all(meant):
            number = [bool(one) for one in meant].index(False) + 1
            raise LikenessError(
                f"Image {number} shows no face to restore: leave it out, or let if_none keep such images."
            )
        return [list(faces) for faces in meant]

    def options(self, analysis: FaceAnalysis) -> PasteOptions:
        """How restored faces come back."""
        shape, parser = paste_shape(self.paste)
        return PasteOptions(
            self.strength,
            member(ColourMatch, self.colours, "colours"),
            self.texture,
            shape,
            parser,
            guard_of(analysis, self.identity_guard, self.identity),
            self.batch_size,
        )


def paste_shape(paste: str) -> tuple[Shape, FaceParser | None]:
    """What is pasted: a shape, or what a parser says."""
    if named(paste, "paste") in choices(Shape):
        return Shape(paste), None
    return Shape.SQUARE, managed_parser(paste)


def find_paste(paste: str) -> object:
    """The parser that is named, if it is one; LikenessError when it is not there."""
    return None if paste in choices(Shape) else models_download.find_file("facexlib", paste)


def paste_input() -> Any:
    return io.Combo.Input(
        "paste",
        options=[*choices(Shape), *parsers()],
        default=Shape.FACE.value,
        tooltip=(
            "What of a crop is pasted: a face's shape around the keypoints, the whole square, or face and hair as a "
            "parsing network in models/facexlib sees them."
        ),
    )


def colours_input() -> Any:
    return io.Combo.Input(
        "colours",
        options=choices(ColourMatch),
        default=ColourMatch.NONE.value,
        tooltip="Matches the colours of a pasted face to the image: by mean and contrast, or by all low frequencies.",
    )


def restoration_inputs(*left_out: str) -> tuple[list[Any], list[Any]]:
    """The widgets of `Wanted` but these, and the sockets that follow."""
    widgets = [
        io.Combo.Input(
            "people",
            options=choices(Whose),
            default=Whose.ALL.value,
            tooltip="All faces, or the one that Find Faces has chosen (connect its faces).",
        ),
        share_input("strength", 1.0, "How much of the restored face is blended over the original one."),
        share_input(
            "identity_guard",
            0.5,
            "How much of a face's likeness must survive, 0 to 1. A face that would lose more is restored less, or "
            "not at all, and the report says so. 0 only measures. Needs a face analysis with a recogniser.",
        ),
        share_input(
            "fidelity", 0.5, "CodeFormer only: 0 invents the most beautiful face, 1 stays closest to the image."
        ),
        paste_input(),
        colours_input(),
        advanced(
            io.Float.Input(
                "texture",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.05,
                tooltip="How much of the image's own finest detail (pores, grain) is added to smooth restored skin.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "adain",
                default=True,
                tooltip="CodeFormer only: takes the colours of the image, as the official code does, not of the "
                "codebook.",
            )
        ),
        advanced(
            io.Combo.Input(
                "if_none",
                options=choices(IfFaceless),
                default=IfFaceless.KEEP.value,
                tooltip="What happens to an image that shows no face: it passes as it is, or the run stops.",
            )
        ),
        advanced(
            io.Int.Input(
                "batch_size",
                default=4,
                min=1,
                max=64,
                tooltip="How many faces the network processes at once; fewer if memory runs out.",
            )
        ),
    ]
    sockets = [
        FacesSocket.Input(
            "faces", optional=True, tooltip="From Find Faces on the same images, to choose who is restored."
        ),
        IdentitySocket.Input(
            "identity",
            optional=True,
            tooltip="The person whose likeness the faces must keep; without it, each face is compared with itself.",
        ),
        region_input("Nothing changes outside of it: for example Face Mask's eyes. One mask, or one an image."),
    ]
    return [widget for widget in widgets if widget.id not in left_out], sockets


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """A batch as colours (n, H, W, 3) in 0..1 and whatever is beside them. given: the colours as they came."""

    colours: Tensor
    given: Tensor
    alpha: Tensor | None  # (n, H, W, 1)
    is_grey: bool
    photos: list[np.ndarray]

    @classmethod
    def of(cls, image: Tensor) -> PictureBatch:
        """From an IMAGE of 1, 3 or 4 channels; LikenessError for what is not one."""
        photos = to_photos(image)
        image = image[None] if image.ndim == 3 else image
        alpha = image[..., 3:] if image.shape[-1] == 4 else None
        is_grey = image.shape[-1] == 1
        given = image.expand(*image.shape[:3], 3) if is_grey else image[..., :3]
        return cls(given.clamp(0, 1), given, alpha, is_grey, photos)

    def canvases(self) -> list[Tensor]:
        """Copies to paste into, which stay as they came wherever nothing is pasted."""
        return [picture.clone() for picture in self.given]

    def like(self, colours: Sequence[Tensor]) -> Tensor:
        """Changed colours as a batch of the same kind, transparency enlarged with them. One image is not copied: it
        may have a gigabyte."""
        batch = joined(colours)
        if self.is_grey:
            return batch[..., :1] + (batch - batch[..., :1]).mean(-1, keepdim=True)  # what is grey stays to the bit
        if self.alpha is None:
            return batch
        alpha = [resized(one, batch.shape[1], batch.shape[2]) for one in self.alpha]
        return torch.cat([batch, torch.stack(alpha)], -1)


def joined(rows: Sequence[Tensor]) -> Tensor:
    """The rows of a batch as one tensor, without a copy where there is one only."""
    return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))


def regions_of(region: Tensor | None, pictures: PictureBatch) -> list[Tensor] | None:
    """The masks of the input region at the size of the images."""
    if region is None:
        return None
    masks = as_mask(region, "The input region")
    if len(masks) not in (1, len(pictures.colours)):
        raise LikenessError(
            f"The input region holds {len(masks)} masks for {len(pictures.colours)} images: connect one, or one for "
            "each."
        )
    height, width = pictures.colours.shape[1:3]
    return [resized(mask[..., None], height, width)[..., 0] for mask in masks]


def _sizes(photos: Sequence[np.ndarray]) -> str:
    first = f"{photos[0].shape[1]}x{photos[0].shape[0]}"
    return f"{len(photos)} image{'s' if len(photos) > 1 else ''} of {first}"


def report_of(done: Restored, said: Sequence[str] = ()) -> str:
    """What became of every face, in words."""
    fates = [outcome.fate for outcome in done.outcomes]
    counted = ", ".join(f"{fates.count(fate)} {fate.value}" for fate in Fate if fate in fates)
    lines = [f"{len(fates)} face{'s' if len(fates) != 1 else ''}: {counted}" if fates else "no face found"]
    return "\n".join([*lines, *(outcome.sentence() for outcome in done.outcomes), *said])


def remarks_on(faces: Sequence[Sequence[Face]], options: PasteOptions, analysis: FaceAnalysis) -> list[str]:
    remarks = [f"image {number} shows no face and was kept" for number, found in enumerate(faces, 1) if not found]
    if options.guard is None and any(faces):
        remarks.append(
            f"the identity guard was off, because {analysis.name} has no recogniser: connect one such as buffalo_l or "
            "'works now'"
        )
    return remarks


def finish(pictures: PictureBatch, done: Restored, said: Sequence[str]) -> io.NodeOutput:
    """What a node gives: images, comparison, preview, mask and report."""
    for outcome in done.outcomes:
        if outcome.fate is not Fate.RESTORED:
            log.warning("[likeness] %s.", outcome.sentence())
    report = report_of(done, said)
    pairs = side_by_side(done.before, done.after) if done.before else middles(list(pictures.colours), done.pictures)
    preview = torch.stack([marked(picture, done.outcomes, n) for n, picture in enumerate(pictures.colours)])
    return io.NodeOutput(
        pictures.like(done.pictures), pairs, preview, joined(done.covered), report, ui=ui.PreviewText(report)
    )


def outputs() -> list[Any]:
    return [
        io.Image.Output(
            "finished", display_name="image", tooltip="The finished images; those without a face are unchanged."
        ),
        io.Image.Output(
            "comparison", display_name="comparison", tooltip="Every face before (left) and after, or else the images."
        ),
        io.Image.Output(
            "preview",
            display_name="preview",
            tooltip="What was found: green restored, yellow reduced by the guard, red left as it was.",
        ),
        io.Mask.Output("mask", display_name="mask", tooltip="Where faces were pasted, with their soft edges."),
        io.String.Output(
            "report", display_name="report", tooltip="Every face: what was done, and its likeness before and after."
        ),
    ]


# --- restoring


@must_exist(paste=find_paste)
class RestoreFaces(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets, sockets = restoration_inputs()
        return schema(
            node_id="LikenessRestoreFaces",
            display_name="Restore Faces",
            category=CATEGORY,
            description=(
                "Restores faces with GFPGAN, RestoreFormer or CodeFormer, and keeps the person: every result is "
                "compared with the original face, and restored less, or not at all, where it would become another "
                "person. The report says what was done to each."
            ),
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch; transparency and size stay as they are."),
                RestorerSocket.Input(
                    "restorer", tooltip="From Load Face Restorer; other packs' and ComfyUI's loaders fit as well."
                ),
                FaceAnalysisSocket.Input(
                    "face_analysis", tooltip="Finds the faces, and recognises them for the identity guard."
                ),
                *widgets,
                *sockets,
            ],
            outputs=outputs(),
            search_aliases=["face restoration", "GFPGAN", "CodeFormer", "FaceRestoreCFWithModel", "ReActorRestoreFace"],
        )

    @classmethod
    def execute(cls, image: Tensor, restorer: Any, face_analysis: Any, **wanted: Any) -> io.NodeOutput:
        from ..restoration.restorers import Wishes

        pictures, asked, managed = PictureBatch.of(image), Wanted(**wanted), restorer_on_socket(restorer)
        analysis = adopt_analysis(face_analysis)
        regions, options = regions_of(asked.region, pictures), asked.options(analysis)
        faces = asked.faces_of(pictures.photos, analysis, counter(len(pictures.photos)))
        done = restore_faces(
            list(pictures.colours),
            faces,
            partial(managed.restore, wishes=Wishes(asked.fidelity, asked.adain)),
            managed.restorer.side,
            options,
            canvases=pictures.canvases(),
            regions=regions,
            after_each=counter(max(sum(map(len, faces)), 1)),
        )
        said = [*remarks_on(faces, options, analysis), managed.licence]
        return finish(pictures, done, said)


# --- enlarging


@must_exist(paste=find_paste)
class UpscalePortrait(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets, sockets = restoration_inputs()
        return schema(
            node_id="LikenessUpscalePortrait",
            display_name="Upscale Portrait",
            category=CATEGORY,
            description=(
                "Enlarges images with a super-resolution network (Load Upscale Model) tile by tile, and pastes "
                "restored faces at the new size in the same pass, each cut out of the original. Without a restorer it "
                "only enlarges."
            ),
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch, of any size."),
                io.UpscaleModel.Input(
                    "upscale_model", tooltip="From ComfyUI's Load Upscale Model, for example RealESRGAN_x4plus."
                ),
                io.Float.Input(
                    "scale_by",
                    default=2.0,
                    min=0.25,
                    max=LARGEST_SCALE,
                    step=0.05,
                    tooltip="How many times as large the result is; the network's own factor may be another.",
                ),
                *widgets,
                advanced(
                    io.Boolean.Input(
                        "fast",
                        default=True,
                        tooltip="Half precision on a GPU where the network allows it; tiles that overflow are "
                        "computed again in float32.",
                    )
                ),
                RestorerSocket.Input(
                    "restorer", optional=True, tooltip="From Load Face Restorer; without it faces are only enlarged."
                ),
                FaceAnalysisSocket.Input(
                    "face_analysis", optional=True, tooltip="Needed with a restorer: finds and recognises the faces."
                ),
                *sockets,
            ],
            outputs=outputs(),
            search_aliases=["ESRGAN", "super-resolution", "upscale", "hires", "MagiCapture", "ImageUpscaleWithModel"],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        upscale_model: Any,
        scale_by: float = 2.0,
        fast: bool = True,
        restorer: Any = None,
        face_analysis: Any = None,
        **wanted: Any,
    ) -> io.NodeOutput:
        from ..restoration.restorers import Wishes

        pictures, asked, network = PictureBatch.of(image), Wanted(**wanted), upscaler_of(upscale_model)
        if restorer is None:
            canvases = _enlarged(pictures, network, scale_by, fast)
            mask = torch.zeros(len(canvases), *canvases[0].shape[:2])
            said = "no restorer is connected: faces were only enlarged"
            finished, pairs = pictures.like(canvases), middles(list(pictures.colours), canvases)
            return io.NodeOutput(finished, pairs, pictures.colours, mask, said)
        if face_analysis is None:
            raise LikenessError("Restoring faces needs the input face_analysis: connect Load Face Analysis.")
        managed, analysis = restorer_on_socket(restorer), adopt_analysis(face_analysis)
        regions, options = regions_of(asked.region, pictures), asked.options(analysis)
        faces = asked.faces_of(pictures.photos, analysis, counter(len(pictures.photos)))
        canvases = _enlarged(pictures, network, scale_by, fast)
        done = restore_faces(
            list(pictures.colours),
            faces,
            partial(managed.restore, wishes=Wishes(asked.fidelity, asked.adain)),
            managed.restorer.side,
            options,
            canvases=canvases,
            regions=regions,
            after_each=counter(max(sum(map(len, faces)), 1)),
        )
        return finish(pictures, done, [*remarks_on(faces, options, analysis), managed.licence])


def _enlarged(pictures: PictureBatch, network: ManagedUpscaler, scale_by: float, fast: bool) -> list[Tensor]:
    """Every image at the size that is wanted."""
    count, height, width = pictures.colours.shape[:3]
    size = max(round(height * scale_by), 1), max(round(width * scale_by), 1)
    half = network.ready(fast)
    step = counter(count * network.upscaler.tile_count(height, width))
    return [resized(network.upscaler.enlarge(one, half, after_each=step), *size) for one in pictures.colours]


# --- pasting what somebody else has changed


@must_exist(paste=find_paste)
class PasteFacesBack(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPasteFacesBack",
            display_name="Paste Faces Back",
            category=CATEGORY,
            description=(
                "Pastes face crops that other nodes have changed back to where they were cut out, to the fraction of a "
                "pixel and with a soft edge. What was not changed in a crop stays exactly as it is in the image; the "
                "image may have been enlarged in between."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The images, in their own size or enlarged."),
                FacesSocket.Input("faces", tooltip="From Find Faces, as it cut the crops out."),
                io.Image.Input(
                    "crops",
                    tooltip="The changed crops, one for each chosen face, square, of any size: 512 or enlarged.",
                ),
                io.Combo.Input(
                    "framing",
                    options=choices(CropFraming),
                    default=CropFraming.HEAD.value,
                    tooltip="Which crops: those of Find Faces, or the aligned portraits of Identity from Photos.",
                ),
                paste_input(),
                colours_input(),
                share_input("strength", 1.0, "How much of the change is pasted."),
                region_input("Nothing changes outside of it. One mask, or one for each image."),
            ],
            outputs=[
                io.Image.Output("finished", display_name="image", tooltip="The images with the crops pasted."),
                io.Mask.Output("mask", display_name="mask", tooltip="Where they were pasted, with their soft edges."),
            ],
            search_aliases=["uncrop", "stitch", "face paste", "inverse affine", "Inpaint Stitch"],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        faces: FoundFaces,
        crops: Tensor,
        framing: str = CropFraming.HEAD.value,
        paste: str = Shape.FACE.value,
        colours: str = ColourMatch.NONE.value,
        strength: float = 1.0,
        region: Tensor | None = None,
    ) -> io.NodeOutput:
        pictures, found, changed = PictureBatch.of(image), found_of(faces), PictureBatch.of(crops)
        shape, parser = paste_shape(paste)
        canvases, covered = paste_crops(
            pictures.canvases(),
            found,
            list(changed.colours.permute(0, 3, 1, 2)),
            member(CropFraming, framing, "framing"),
            PasteOptions(strength, member(ColourMatch, colours, "colours"), 0.0, shape, parser),
            regions_of(region, pictures),
        )
        return io.NodeOutput(pictures.like(canvases), joined(covered))


NODES: list[type[io.ComfyNode]] = [LoadFaceRestorer, RestoreFaces, UpscalePortrait, PasteFacesBack]
