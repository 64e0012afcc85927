"""The front of `models/`: which model files exist, where they lie on this machine, and how to fetch one on request.

Nothing here touches the network unless `download` is called, and nothing needs torch or ComfyUI.
"""

from __future__ import annotations

from .models.content import is_lfs_pointer, sha256
from .models.download import DownloadOutcome, download
from .models.free_faces import DLIB, SFACE, YUNET, FreeNetwork, find_free
from .models.lookup import find_file, list_files, locate, resolve
from .models.packs import find_insightface_pack, list_insightface_packs
from .models.page import main, markdown_tables, with_tables
from .models.places import OUR_KINDS, download_root, folders, model_roots, register_folders
from .models.progress import Progress, progress_bar
from .models.registry import HUB, WEIGHT_SUFFIXES, ModelFile, human_size, registry, select, systems
from .models.scan import walk
from .models.verify import Check, Health, check_file, installed

__all__ = [
    "DLIB",
    "HUB",
    "OUR_KINDS",
    "SFACE",
    "WEIGHT_SUFFIXES",
    "YUNET",
    "Check",
    "DownloadOutcome",
    "FreeNetwork",
    "Health",
    "ModelFile",
    "Progress",
    "check_file",
    "download",
    "download_root",
    "find_file",
    "find_free",
    "find_insightface_pack",
    "folders",
    "human_size",
    "installed",
    "is_lfs_pointer",
    "list_files",
    "list_insightface_packs",
    "locate",
    "markdown_tables",
    "model_roots",
    "progress_bar",
    "register_folders",
    "registry",
    "resolve",
    "select",
    "sha256",
    "systems",
    "walk",
    "with_tables",
]

if __name__ == "__main__":
    main()
