"""Photos made ready for training: a folder or a batch in, a dataset out, editable on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from .. import models_download
from ..errors import LikenessError, logger
from ..faces import FaceParser, adopt_analysis, load_parser
from ..faces.identity import OUTLIER_COSINE, Identity
from ..storage import check_folder
from ..training.data.captions import parse_templates
from ..training.data.dataset import (
    LEAST_SHARPNESS,
    SMALLEST_FACE,
    Dataset,
    DatasetKind,
    DatasetSettings,
    Framing,
    Unfit,
    build_dataset,
    fingerprint,
)
from ..training.data.folder import NOTICE, is_dataset, load_dataset, place_for, safe_name, save_dataset
from ..training.data.photo_files import Photo, PhotoFolder, read_folder
from ..training.data.sheet import sheet
from .choices import choices, finite, member, must_exist, named, readable
from .node import Node
from .photos import connected, dataset_root, find_photos, more_images, places_of, state_of
from .progress import counter
from .schema import DatasetSocket, FaceAnalysisSocket, IdentitySocket, advanced, outlier_threshold_input, schema

log = logger(__name__)

CATEGORY = "likeness/training"


class _Masks(Enum):
    """Where face masks come from, besides the parsing networks in models/facexlib."""

    ELLIPSE = "ellipse"


def parsers() -> list[str]:
    """The face parsing networks among the models."""
    names = models_download.list_files("facexlib")
    return [name for name in names if Path(name).name.startswith(("parsing_", "79999_iter"))]


def find_parser(masks: str) -> Path | None:
    """The parsing network's file, None for masks that need none; LikenessError when it is not there."""
    return None if masks in choices(_Masks) else models_download.find_file("facexlib", masks)


@must_exist(masks=find_parser, folder=find_photos)
class PortraitDataset(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPortraitDataset",
            display_name="Portrait Dataset",
            category=CATEGORY,
            description=(
                "Makes photos ready for training: finds the person's face in each, crops, masks and captions them, "
                "and leaves out photos without a face, blurred ones, duplicates and other people. The preview shows "
                "every photo with its mask, caption and verdict. Saved datasets can be edited on disk. "
                + NOTICE.replace("This folder", "A saved dataset")
            ),
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=choices(DatasetKind),
                    default=DatasetKind.PERSON.value,
                    tooltip=(
                        "What is to be learned. 'person': one person's face. 'style': how the portraits look, whoever "
                        "is in them; photos need no face then."
                    ),
                ),
                io.String.Input(
                    "trigger_word",
                    default="ohwx",
                    tooltip=(
                        "The word that will stand for the person or style in prompts: a rare one, without spaces or "
                        "brackets."
                    ),
                ),
                io.String.Input(
                    "class_word",
                    default="person",
                    tooltip="The class that the trigger word belongs to: person, woman, man. It is used in the "
                    "captions.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the images in pixels: 512 for SD1.5, 1024 for SDXL.",
                ),
                io.Combo.Input(
                    "framing",
                    options=choices(Framing),
                    default=Framing.HEAD.value,
                    tooltip=(
                        "Which part of a photo is used. 'head and shoulders' keeps a person best; 'largest square' and "
                        "'whole picture' (the photo's proportions) keep clothes and surroundings."
                    ),
                ),
                io.Combo.Input(
                    "unfit",
                    options=choices(Unfit),
                    default=Unfit.LEAVE_OUT.value,
                    tooltip=(
                        "What happens to photos that should not be trained on: 'leave out' and report them, 'stop' "
                        "with one message that names all of them, or 'keep' them."
                    ),
                ),
                io.Combo.Input(
                    "masks",
                    options=[*choices(_Masks), *parsers()],
                    default=_Masks.ELLIPSE.value,
                    tooltip=(
                        "Where face masks come from: an ellipse around the keypoints, or a parsing network in "
                        "models/facexlib (`likeness models get facexlib/parsing_bisenet`), which follows the face "
                        "exactly."
                    ),
                ),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip=(
                        "A folder with photos in ComfyUI's input folder, or a saved dataset. Photos may have captions "
                        "(anna.txt or anna.caption) and masks (anna.mask.png) beside them; kohya's folders (10_anna) "
                        "are read with their repeats. The report names what is not used. Empty: only the input image "
                        "is used."
                    ),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip=(
                        "Writes the dataset to output/likeness/datasets/<name> once; later runs read it back with "
                        "your edits. Empty: nothing is written."
                    ),
                ),
                io.String.Input(
                    "templates",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Captions for photos without one of their own, one per line, {} where the trigger word goes. "
                        "Empty: built-in ones."
                    ),
                ),
                advanced(
                    io.Int.Input(
                        "smallest_face",
                        default=SMALLEST_FACE,
                        min=0,
                        max=4096,
                        tooltip=(
                            "Minimum width and height of a face in the photo, in pixels; in the finished image half "
                            "of it must remain at 512 pixels (in proportion at other resolutions). 0 accepts any "
                            "face."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "least_sharpness",
                        default=LEAST_SHARPNESS,
                        min=0.0,
                        max=10000.0,
                        step=1.0,
                        tooltip="Variance of the face's Laplacian below which a photo counts as blurred; 0 keeps all.",
                    )
                ),
                outlier_threshold_input(
                    "Cosine similarity to the other photos, or to the identity, below which a face counts as another "
                    "person's. 0.25 suits ArcFace recognisers; -1 keeps all."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="One photo or a batch of photos, besides those of the folder.",
                ),
                FaceAnalysisSocket.Input(
                    "face_analysis",
                    optional=True,
                    tooltip="From Load Face Analysis. Needed for a person; keeps faces out of a style.",
                ),
                IdentitySocket.Input(
                    "identity",
                    optional=True,
                    tooltip="The person to choose where photos show several people. Otherwise the largest face is "
                    "taken.",
                ),
                FaceAnalysisSocket.Input(
                    "second_judge",
                    optional=True,
                    tooltip=(
                        "Another recogniser, for example dlib beside OpenCV: a photo counts as another person's if "
                        "either of them says so."
                    ),
                ),
                *more_images(),
            ],
            outputs=[
                DatasetSocket.Output(
                    "dataset", display_name="dataset", tooltip="Images, masks and captions, for the Train nodes."
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="Every photo with its mask, its caption and its verdict.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="The same as text: what is used, what is not, and why."
                ),
            ],
            is_output_node=True,
            search_aliases=["training data", "dreambooth dataset", "LoRA dataset", "instance images", "captions"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", save_as: str = "", **others: Any) -> str:
        """Changes when an image, a caption or a mask in the folder or in the saved dataset does."""
        places = places_of(folder)
        if isinstance(save_as, str) and save_as.strip():
            places += sorted(dataset_root().glob(f"{_escaped(save_as.strip())}*"))
        return state_of(places)

    @classmethod
    def execute(
        cls,
        kind: str,
        trigger_word: str,
        class_word: str = "person",
        resolution: int = 512,
        framing: str = Framing.HEAD.value,
        unfit: str = Unfit.LEAVE_OUT.value,
        masks: str = _Masks.ELLIPSE.value,
        folder: str = "",
        save_as: str = "",
        templates: str = "",
        smallest_face: int = SMALLEST_FACE,
        least_sharpness: float = LEAST_SHARPNESS,
        outlier_threshold: float = OUTLIER_COSINE,
        image: torch.Tensor | None = None,
        face_analysis: Any = None,
        identity: Identity | None = None,
        second_judge: Any = None,
        **more: torch.Tensor | None,
    ) -> io.NodeOutput:
        readable(trigger_word=trigger_word, class_word=class_word, save_as=save_as, templates=templates)
        finite(least_sharpness=least_sharpness, outlier_threshold=outlier_threshold)
        place, photos = find_photos(named(folder, "folder")), connected(image, more)
        if place is not None and is_dataset(place):
            if photos:
                raise LikenessError(
                    f"The folder {folder!r} is a finished dataset, to which images cannot be added: disconnect image, "
                    "or name a folder with photos."
                )
            dataset = load_dataset(place)
        else:
            settings = DatasetSettings(
                kind=member(DatasetKind, kind, "kind"),
                trigger=trigger_word,
                class_word=class_word.strip() or "person",
                resolution=resolution,
                framing=member(Framing, framing, "framing"),
                unfit=member(Unfit, unfit, "unfit"),
                templates=parse_templates(templates),
                smallest_face=smallest_face,
                least_sharpness=least_sharpness,
                outlier_cosine=outlier_threshold,
            )
            dataset = _make(
                settings, place, photos, face_analysis, _parser(masks), identity, save_as.strip(), second_judge
            )
        _log(dataset)
        page = torch.from_numpy(sheet(dataset))[None].float() / 255
        return io.NodeOutput(dataset, page, dataset.report(), ui=ui.PreviewText(dataset.report()))


def _escaped(name: str) -> str:
    import glob

    return glob.escape(Path(name).name)


def _parser(masks: str) -> FaceParser | None:
    file = find_parser(named(masks, "masks"))
    return None if file is None else load_parser(file)


def _photos(place: Path | None, given: Sequence[np.ndarray]) -> PhotoFolder:
    """All photos that were given, and sentences about files that are not used."""
    photos = [Photo(f"image {number}", pixels) for number, pixels in enumerate(given, 1)]
    found = PhotoFolder([], [], []) if place is None else read_folder(place)
    return replace(found, photos=[*photos, *found.photos])


def _make(
    settings: DatasetSettings,
    place: Path | None,
    given: Sequence[np.ndarray],
    face_analysis: Any,
    parser: FaceParser | None,
    identity: Identity | None,
    save_as: str,
    second_judge: Any = None,
) -> Dataset:
    """A new dataset, or the one that was saved from the same photos and settings."""
    analysis = None if face_analysis is None else adopt_analysis(face_analysis)
    second = None if second_judge is None else adopt_analysis(second_judge)
    if identity is not None and not isinstance(identity, Identity):
        raise LikenessError(
            f"The input 'identity' holds a {type(identity).__name__}, not an identity of this pack: connect Identity "
            "from Photos or Load Identity."
        )
    where, made_from = None, ""
    if save_as:
        safe_name(save_as)  # before the photos are read
    found = _photos(place, given)
    if save_as:
        made_from = fingerprint(found.photos, settings, analysis, parser, identity, second)
        where, is_there = place_for(dataset_root(), save_as, made_from)
        if is_there:
            saved = load_dataset(where)
            return replace(saved, remarks=(*saved.remarks, *found.unreadable, *found.notes))
        check_folder(dataset_root(), "The folder of datasets")
    count = counter(2 * len(found.photos))
    dataset = build_dataset(
        found.photos, settings, analysis, parser, identity, found.unreadable, count, found.notes, second
    )
    if where is None:
        return dataset
    save_dataset(dataset, where, made_from)
    log.info("[likeness] Saved the dataset %s. %s", where, NOTICE)
    return replace(dataset, folder=where.name)


def _log(dataset: Dataset) -> None:
    for line in dataset.remarks:
        log.warning("[likeness] %s", line)
    for photo in dataset.left_out:
        log.warning("[likeness] %r was left out, because %s.", photo.name, "; ".join(photo.reasons))


NODES: list[type[io.ComfyNode]] = [PortraitDataset]
