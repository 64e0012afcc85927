"""Masks of faces and of parts of them, by name."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io

from .. import models_download
from ..errors import LikenessError, logger
from ..faces import Face, FaceParser, load_parser
from ..faces.found import FoundFaces
from ..faces.masks import THE_REST, Region, feathered, grown, region_masks, together
from ..injection.comfy.managed import Managed
from .choices import choices, member, must_exist, named, one_of
from .dataset import parsers
from .faces import CATEGORY, found_of
from .node import Node
from .progress import counter
from .schema import FacesSocket, advanced, schema

log = logger(__name__)
FROM_KEYPOINTS = "keypoints (no download)"
TINT = torch.tensor([1.0, 0.2, 0.2])


class MaskedPeople(Enum):
    """Whose mask is made."""

    CHOSEN = "the chosen face"
    ALL = "all faces together"
    EACH = "each face apart"


def find_mask_source(parser: str) -> object:
    """The parsing network's file, if it is one; LikenessError when it is not there."""
    return None if parser == FROM_KEYPOINTS else models_download.find_file("facexlib", parser)


def managed_parser(parser: str) -> FaceParser | None:
    """The parser of a combo on the device that the host computes on, in its care; None for the keypoints' choice."""
    if named(parser, "parser") == FROM_KEYPOINTS:
        return None
    path = models_download.find_file("facexlib", parser)
    opened, managed = _opened(path, path.stat().st_mtime_ns)
    managed.load()
    return opened


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> tuple[FaceParser, Managed]:
    """A parser and what keeps it in the host's care, which must live as long as it is used."""
    opened = load_parser(path)
    log.info("[likeness] Face parser %s; licence: %s", opened.name, opened.licence)
    return opened, Managed(opened.network)


def parser_input() -> io.Combo.Input:
    """The choice of a face parser, for every node that masks faces."""
    return io.Combo.Input(
        "parser",
        options=[FROM_KEYPOINTS, *parsers()],
        default=FROM_KEYPOINTS,
        tooltip=(
            "What the mask follows: shapes around the keypoints, or a parsing network in models/facexlib that knows "
            "every part (`likeness models get facexlib/parsing_bisenet`; trained on non-commercial data)."
        ),
    )


@must_exist(parser=find_mask_source)
class FaceMask(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessFaceMask",
            display_name="Face Mask",
            category=CATEGORY,
            description=(
                "Masks the face, the hair, the eyes, the mouth or another part of the people that Find Faces has "
                "found, to restrict an adapter, inpaint, train or paste. Parts other than face, eyes, brows, nose "
                "and mouth need a face parsing network."
            ),
            inputs=[
                FacesSocket.Input("faces", tooltip="From Find Faces, with keypoints."),
                io.Combo.Input(
                    "region",
                    options=choices(Region),
                    default=Region.FACE.value,
                    tooltip=(
                        "What the mask shows. 'face' is skin, brows, eyes, glasses, nose and mouth; 'head' adds hair, "
                        "ears and hat; 'non-face' and 'background' are all the rest of the image."
                    ),
                ),
                parser_input(),
                io.Combo.Input(
                    "people",
                    options=choices(MaskedPeople),
                    default=MaskedPeople.CHOSEN.value,
                    tooltip="Whose mask: one for each photo, or one for each face, in the order of the rule.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Makes the mask larger by this many pixels in every direction; smaller where negative.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Pixels over which the edge fades, on either side; the same amount for every photo.",
                ),
                advanced(
                    io.String.Input(
                        "and_also",
                        default="",
                        tooltip="Further regions in the same mask, separated by commas, for example: eyes, mouth.",
                    )
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="A mask of the photo's size; empty for a skipped photo."
                ),
                io.Image.Output("preview", display_name="preview", tooltip="The photos with the mask in red."),
            ],
            search_aliases=["face parsing", "BiSeNet", "segmentation", "hair mask", "skin mask"],
        )

    @classmethod
    def execute(
        cls,
        faces: FoundFaces,
        region: str = Region.FACE.value,
        parser: str = FROM_KEYPOINTS,
        people: str = MaskedPeople.CHOSEN.value,
        grow: int = 0,
        feather: int = 0,
        and_also: str = "",
    ) -> io.NodeOutput:
        found = found_of(faces)
        regions = {member(Region, region, "region"), *_regions(and_also)}
        whose = member(MaskedPeople, people, "people")
        network = managed_parser(parser)
        step = counter(len(found.photos))
        masks: list[np.ndarray] = []
        photos: list[np.ndarray] = []
        for photo, chosen, everybody in zip(found.photos, found.chosen, found.all_faces, strict=True):
            meant = everybody if whose is not MaskedPeople.CHOSEN else [chosen] if chosen else []
            beside = [face for face in everybody if not _among(face, meant)]
            made = region_masks(photo, meant, regions, network, beside)
            rows = list(made) if whose is MaskedPeople.EACH else [_as_one(made, regions)]
            masks += [feathered(grown(mask, grow), feather) for mask in rows]
            photos += [photo] * len(rows)
            step()
        if not masks:
            raise LikenessError(
                "No face was found in these photos, so 'each face apart' has nothing to mask: choose "
                "another value of people."
            )
        return io.NodeOutput(_padded(masks), _tinted(photos, masks))


def _regions(text: str) -> list[Region]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [Region(one_of(choices(Region), name, "and_also")) for name in names]


def _among(face: Face, faces: list[Face]) -> bool:
    return any(face.box is other.box for other in faces)


def _as_one(masks: np.ndarray, regions: set[Region]) -> np.ndarray:
    """One mask of all people; without any, the rest of the image is all of it."""
    if not len(masks):
        return np.full(masks.shape[1:], bool(regions & THE_REST))
    return together(masks, regions)


def _padded(masks: list[np.ndarray]) -> torch.Tensor:
    """(n, H, W), 0 at right and bottom where sizes differ."""
    height, width = max(mask.shape[0] for mask in masks), max(mask.shape[1] for mask in masks)
    batch = torch.zeros(len(masks), height, width)
    for row, mask in zip(batch, masks, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return batch


def _tinted(photos: list[np.ndarray], masks: list[np.ndarray]) -> torch.Tensor:
    """The photos with half of the mask's red over them: (n, H, W, 3)."""
    height, width = max(mask.shape[0] for mask in masks), max(mask.shape[1] for mask in masks)
    batch = torch.zeros(len(masks), height, width, 3)
    for row, photo, mask in zip(batch, photos, masks, strict=True):
        share = 0.5 * torch.from_numpy(mask)[..., None]
        row[: photo.shape[0], : photo.shape[1]] = torch.from_numpy(photo) / 255 * (1 - share) + share * TINT
    return batch


NODES: list[type[io.ComfyNode]] = [FaceMask]
