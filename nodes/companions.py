"""Networks beside an adapter's own file, found and loaded when the adapter asks for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..errors import LikenessError

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapters.blip_diffusion.words import WordPieces
    from ..injection.comfy import ManagedEvaTower

PARSERS = ("parsing_bisenet.pth", "parsing_parsenet.pth")  # in models/facexlib, the better one first
_EVA_NAME = re.compile(r"eva0?2?.*(clip|large).*336", re.IGNORECASE)

# An encoder lives as long as an adapter that has asked for it: the graph keeps both, and frees both.
_towers: WeakValueDictionary[tuple[str, int, int], ManagedEvaTower] = WeakValueDictionary()
_kept: WeakKeyDictionary[Any, ManagedEvaTower] = WeakKeyDictionary()


def find_eva(adapter: Any) -> ManagedEvaTower:
    """The image encoder EVA02-CLIP-L-14-336, for this ManagedAdapter; LikenessError that says how to get it."""
    from ..adapters import eva_clip
    from ..injection.comfy import ManagedEvaTower
    from ..weights.files import read_weights

    path = _eva_file()
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    tower = _towers.get(key)
    if tower is None:
        tower = _towers[key] = ManagedEvaTower(eva_clip.build_eva(read_weights(path)[0], path.name))
    _kept[adapter] = tower
    return tower


def _eva_file() -> Path:
    """The official file wherever people have it, or one of the same network under another name."""
    from ..adapters import eva_clip
    from ..models_download import find_file, list_files

    try:
        return find_file("clip_vision", eva_clip.FILE)
    except LikenessError:
        others = [name for name in list_files("clip_vision") if _EVA_NAME.search(name)]
        if not others:
            raise
        return find_file("clip_vision", others[0])


def parse_aligned(crops: Tensor) -> Tensor:
    """The parts of aligned faces (n, S, S, 3) uint8 -> (n, S, S) of `faces.parsing.Part`; LikenessError that says how
    to get a parsing network."""
    from ..faces.parsing import load_parser
    from ..models_download import find_file, list_files

    here = list_files("facexlib")
    name = next((name for name in PARSERS if name in here), PARSERS[0])
    return load_parser(find_file("facexlib", name)).parse_crops(crops)


def find_vocabulary() -> WordPieces:
    """The word pieces of bert-base-uncased; LikenessError that says how to get them."""
    from ..adapters.blip_diffusion.words import VOCABULARY, WordPieces
    from ..models_download import find_file

    return WordPieces.load(find_file("blip_diffusion", VOCABULARY))
