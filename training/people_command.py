"""What a configuration says of an adapter's training, opened: people, image encoders, recogniser, files to start from.

[data]
people = "faces"                # a folder for each person; see `data.people`
encoder = "clip-vit-h.safetensors"
start_from = "ip-adapter-faceid_sd15.bin"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.clip_vision import ClipEncoder, TransformersClipEncoder
from ..adapters.eva_clip import EvaTower, build_eva
from ..errors import LikenessError
from ..faces import Choice, FaceAnalysis, load_parser, load_recogniser_module, order_faces
from ..faces.people import PeopleInPhoto, load_segmenter
from ..weights.files import read_weights
from .data.people import read_people
from .materials import PeopleMaterials
from .objectives.identity import Measure, arcface_measure
from .recipes.adapter_training import AdapterSettings
from .run_record import digest_of_file

if TYPE_CHECKING:
    from .command import DataSettings

_FILES = ("start_from", "control", "few_step", "encoder", "eva", "parser", "recogniser", "segmenter")


def people_materials(
    data: DataSettings,
    settings: AdapterSettings,
    analysis: FaceAnalysis,
    device: torch.device,
    after_each: Callable[[], Any] = lambda: None,
) -> PeopleMaterials:
    """What the recipe of an adapter is made from; what was found of the people is printed.

    Raises LikenessError naming the entry that is missing or wrong.
    """
    if data.people is None:
        raise LikenessError(f"{settings.title} learns from photos of many people: write their folder into data.people.")
    for name in _FILES:
        file = getattr(data, name)
        if file is not None and not (file.is_file() or (name == "control" and file.is_dir())):
            raise LikenessError(f"There is no file '{file}': correct data.{name}.")
    segment = None if data.segmenter is None else _segmenter(data.segmenter, device)
    people = read_people(
        data.people,
        analysis,
        data.resolution,
        settings.framing,
        after_each=after_each,
        segment=segment,
        together=settings.together,
    )
    print(people.report())
    parser = None if data.parser is None else load_parser(data.parser, device)
    return PeopleMaterials(
        people,
        device,
        clip=None if data.encoder is None or settings.trains_encoder else _clip(data.encoder, device),
        encoder=data.encoder,
        eva=None if data.eva is None else _eva(data.eva, device),
        parse=None if parser is None else parser.parse_crops,
        measure=measure_of(data, analysis, device) if settings.measures_identity else None,
        detect=partial(largest_face, analysis),
        start=data.start_from,
        control=data.control,
        few_step=data.few_step,
    )


def digest_of_people(materials: PeopleMaterials, data: DataSettings) -> str:
    """Tells trainings apart by their people and by the files they start from."""
    digest = hashlib.sha256(materials.people.digest().encode())
    for name in _FILES:
        file: Path | None = getattr(data, name)
        if file is not None:
            files = [file] if file.is_file() else sorted(path for path in file.iterdir() if path.is_file())
            digest.update(repr((name, [digest_of_file(path) for path in files])).encode())
    return digest.hexdigest()


def measure_of(data: DataSettings, analysis: FaceAnalysis, device: torch.device) -> Measure:
    """The recogniser of the identity loss: the named file, else the face analysis's own where it has gradients."""
    if data.recogniser is not None:
        return arcface_measure(load_recogniser_module(data.recogniser).to(device))
    own: Any = analysis.recogniser
    if not hasattr(own, "measure"):
        raise LikenessError(
            "The identity loss needs a recogniser it can backpropagate through: write an iresnet's .onnx or "
            ".safetensors file, or dlib's .dat, into data.recogniser, or set recipe.lambda_id to 0."
        )
    own.module.to(device)
    return own.measure


def keypoints_of(analysis: FaceAnalysis, photo: Any) -> Any:
    """Those (5, 2) of the likeliest face in a photo (H, W, 3) uint8; None where there is none."""
    faces = analysis.find(photo, embed=False)
    return faces[0].keypoints if faces else None


def largest_face(analysis: FaceAnalysis, photo: Any) -> Any:
    """The same of the largest face."""
    faces = order_faces(analysis.find(photo, embed=False), Choice.LARGEST)
    return faces[0].keypoints if faces else None


def _segmenter(file: Path, device: torch.device) -> Callable[[Any], PeopleInPhoto]:
    segmenter = load_segmenter(file)
    segmenter.network.to(device)
    return segmenter.people


def _clip(file: Path, device: torch.device) -> ClipEncoder:
    weights, _ = read_weights(file)
    try:
        return TransformersClipEncoder.from_weights(weights).to(device)
    except LikenessError as error:
        raise LikenessError(f"data.encoder is '{file.name}', but {error}") from error


def _eva(file: Path, device: torch.device) -> EvaTower:
    weights, _ = read_weights(file)
    return build_eva(weights, file.name).to(device)
