"""How names on the command line become models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models_download import find_insightface_pack, list_insightface_packs

if TYPE_CHECKING:
    from ..faces import FaceAnalysis


def open_faces(name: str) -> FaceAnalysis:
    """The named pack, or a free one: `sface`, `dlib`, `mtcnn`; auto takes a pack that is here, else the best one."""
    from ..faces import load_mtcnn, load_pack
    from ..faces.ready import open_dlib, open_opencv, works_now

    if name in ("miniature", "miniature-judge"):
        from ..miniature.models.backend import miniature_analysis, miniature_judge

        return miniature_analysis() if name == "miniature" else miniature_judge()
    if name == "auto":
        here = list_insightface_packs()
        if not here:
            return works_now()
        name = here[0]
    free = {"sface": open_opencv, "dlib": open_dlib, "mtcnn": load_mtcnn}
    return free[name]() if name in free else load_pack(find_insightface_pack(name))
