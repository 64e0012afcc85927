"""ComfyUI-Likeness: identity-preserving portraits. Importing this is free: no torch, no host, no side effects."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


def comfy_entrypoint():
    """ComfyUI's V3 entry point; returns the `ComfyExtension` that lists our nodes."""
    from .nodes import LikenessExtension

    return LikenessExtension()
