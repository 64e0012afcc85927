"""Which addresses are asked, and what the Hugging Face hub's own settings change about them.

The hub's files are fetched by our own downloader, not by `huggingface_hub`: that keeps to no size, speed or time limit,
has no hash to compare with, stores files in a cache of its own layout, and in its newer releases leaves the transfer to
a library that neither reports nor stops. What its users have set is honoured: HF_ENDPOINT (a mirror), HF_TOKEN or the
token that `hf auth login` has stored, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from ..errors import LikenessError
from .places import hub_home
from .registry import HUB, ModelFile

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_YES = frozenset({"1", "true", "yes", "on"})


def is_loopback(url: str) -> bool:
    """Whether the address is this machine itself, as a tunnel or a test has it."""
    return urllib.parse.urlsplit(url).hostname in LOOPBACK


def must_be_safe(url: str, *, loopback: bool) -> None:
    """Raise LikenessError for what is not https; `loopback`: unless it is this machine's own web server."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise LikenessError(
            f"The address {url!r} is not a valid address ({error}): nothing was fetched from it."
        ) from error
    if parts.scheme != "https" and not (loopback and parts.scheme == "http" and host in LOOPBACK):
        raise LikenessError(f"The address {url!r} is not https: nothing was fetched from it.")


def is_on_hub(model: ModelFile) -> bool:
    """Whether the file is published on the Hugging Face hub."""
    return model.url.startswith(HUB)


def hub() -> str:
    """The hub, or the mirror that the user has named in its place; ends with a slash."""
    mirror = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    return f"{mirror}/" if mirror else HUB


def address(model: ModelFile) -> str:
    """Where the file is fetched from. Raises LikenessError for unsafe addresses and when the hub is not to be asked."""
    must_be_safe(model.url, loopback=True)
    if not is_on_hub(model):
        return model.url
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES:
        raise LikenessError(
            f"The environment variable HF_HUB_OFFLINE forbids access to the hub: unset it to download {model.name}, or "
            f"fetch {model.source} elsewhere and put {model.filename} in models/{model.folder}."
        )
    url = hub() + model.url.removeprefix(HUB)
    must_be_safe(url, loopback=True)
    return url


def token() -> str:
    """The user's access token for the hub, or ''. Raises LikenessError for one that cannot be sent."""
    given = (os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if given and not re.fullmatch(r"[!-~]+", given):
        raise LikenessError(
            "The environment variable HF_TOKEN is not an access token: copy it again from the hub's page."
        )
    if given or os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _YES:
        return given
    stored = os.environ.get("HF_TOKEN_PATH")
    for path in [Path(stored)] if stored else [home / "token" for home in hub_home()]:
        try:
            text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        except (OSError, ValueError):
            continue
        if re.fullmatch(r"[!-~]+", text):
            return text
    return ""
