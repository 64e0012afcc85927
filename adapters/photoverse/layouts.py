"""The files in which PhotoVerse and its parent ELITE come, told apart by their keys.

    ours        text_adapter.*, image_adapter.*, visual.<n>.to_{k,v}.weight, lora.<n>.to_{k,v}.{A,B}; n counts
                cross-attention as it runs, the metadata say diffusers' name of each (format photoverse/1)
    unofficial  text_adapter.*, image_adapter.*, cross_attention_adapter.<attn2>.processor.to_{k,v}_ip.0.weight and
                ….to_{q,k,v}.lora_{A,B}.default.weight, beside copies of the base's own weights (idonahum/photoVerse)
    ELITE       mapping_*, and <attn2 with _ for .>_to_{k,v}.weight, which replace the base's: objects, no image branch

`*` are the keys of `networks.FeatureAdapter`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from ...errors import LikenessError
from ...weights.checkpoint_layout import below, execution_order, registration_order
from ...weights.lora import LoraPair
from ..system import WeightFile

FORMAT = "photoverse/1"
_TEXT, _IMAGE, _CROSS = "text_adapter.", "image_adapter.", "cross_attention_adapter."
_OURS = re.compile(r"(?P<what>visual|lora)\.(?P<n>\d+)\.(?P<layer>to_k|to_v)\.(?P<part>weight|A|B)")
_VISUAL = re.compile(r"(?P<path>.+\.attn2)\.processor\.to_(?P<layer>k|v)_ip\.0\.weight")
_LORA = re.compile(r"(?P<layer>.+\.attn2\.to_[qkv])\.lora_(?P<part>A|B)\.default\.weight")
_COPY = re.compile(r".+\.attn2\.to_[qkv]\.(base_layer\.)?weight")  # of the base model, which was frozen
_ELITE = re.compile(r"(?P<path>.+_attn2)_(?P<layer>to_k|to_v)\.weight")
_NUMBERED = re.compile(r"_(\d+)(?=_|$)")
_ALPHA = "lora_config.lora_alpha"


class Layout(Enum):
    """Where a file is from; the value is for reports."""

    OURS = "PhotoVerse"
    UNOFFICIAL = "PhotoVerse (unofficial)"
    ELITE = "ELITE"


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds, by diffusers' path of the layers.

    text, image: official keys of the two adapters; no image adapter in ELITE's. visual: attention -> its key and value
    projections. lora: layer -> pair. whole: layer -> weight in place of the base's.
    """

    layout: Layout
    text: Mapping[str, Tensor]
    image: Mapping[str, Tensor]
    visual: Mapping[str, tuple[Tensor, Tensor]]
    lora: Mapping[str, LoraPair] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def attention(self) -> list[str]:
        """diffusers' paths of the cross-attention layers, in the order of their slots."""
        paths = self.visual or {path.rpartition(".")[0] for path in self.whole}
        return sorted(paths, key=registration_order)


def layout_of(file: WeightFile) -> Layout | None:
    """Whose layout a file has; None when it is none of them. Unfinished files count."""
    if file.metadata.get("format") == FORMAT or file.has(f"{_TEXT}mapping_", "visual."):
        return Layout.OURS
    if file.has(f"{_TEXT}mapping_") or file.has(f"{_IMAGE}mapping_"):
        return Layout.UNOFFICIAL
    has_layers = any(_ELITE.fullmatch(key) for key in file.weights)
    return Layout.ELITE if has_layers and file.has("mapping_0.", "mapping_patch_0.") else None


def read(file: WeightFile) -> Content:
    """What a file holds. Raises LikenessError naming it when it is not complete, or has keys that nothing knows."""
    match layout_of(file):
        case Layout.OURS:
            return _ours(file)
        case Layout.UNOFFICIAL:
            return _unofficial(file)
        case Layout.ELITE:
            return _elite(file)
    raise LikenessError(
        f"{file.name!r} is not a PhotoVerse file (it has no text_adapter.*): choose another one, or download it again."
    )


def to_ours(content: Content, settings: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file to write. settings: what else the metadata say, as the base and the kind."""
    paths = sorted(content.visual, key=execution_order)
    tensors = {f"{_TEXT}{key}": value for key, value in content.text.items()}
    tensors |= {f"{_IMAGE}{key}": value for key, value in content.image.items()}
    for n, path in enumerate(paths):
        for layer, weight in zip(("to_k", "to_v"), content.visual[path], strict=True):
            tensors[f"visual.{n}.{layer}.weight"] = weight
            if (pair := content.lora.get(f"{path}.{layer}")) is not None:
                tensors[f"lora.{n}.{layer}.A"], tensors[f"lora.{n}.{layer}.B"] = pair.down, pair.up
    pairs = list(content.lora.values())
    said = {"format": FORMAT, "layers": json.dumps(paths), **{key: str(value) for key, value in settings.items()}}
    if pairs:
        said |= {"rank": str(pairs[0].rank), "alpha": str(pairs[0].scale)}
    return tensors, said


def _ours(file: WeightFile) -> Content:
    rest = {k: v for k, v in file.weights.items() if not k.startswith((_TEXT, _IMAGE))}
    paths = _paths(file)
    scale = _number(file, "alpha", 1.0)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    for key, value in rest.items():
        match = _OURS.fullmatch(key)
        if match is None or int(match["n"]) >= len(paths):
            unknown.append(key)
            continue
        part = match["part"] if match["what"] == "lora" else "weight"
        found.setdefault((paths[int(match["n"])], match["layer"]), {})[part] = value
    _refuse(file, unknown)
    visual: dict[str, dict[str, Tensor]] = {}
    lora = {}
    for (path, layer), parts in found.items():
        if "weight" in parts:
            visual.setdefault(path, {})[layer] = parts["weight"]
        if "A" in parts or "B" in parts:
            pair = _pair(file, f"{path}.{layer}", parts, None)
            lora[f"{path}.{layer}"] = LoraPair(pair.down, pair.up, scale * pair.rank)
    return Content(Layout.OURS, *_adapters(file), _both(file, visual), lora)


def _paths(file: WeightFile) -> list[str]:
    try:
        paths = json.loads(file.metadata.get("layers", ""))
    except (ValueError, RecursionError):
        paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise LikenessError(
            f"{file.name!r} does not say which layer each of its parts belongs to (its metadata are gone): use the "
            "file as it was written by the training."
        )
    return paths


def _unofficial(file: WeightFile) -> Content:
    layers = below(file.weights, _CROSS)
    visual: dict[str, dict[str, Tensor]] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in layers.items():
        if match := _VISUAL.fullmatch(key):
            visual.setdefault(match["path"], {})[f"to_{match['layer']}"] = value
        elif match := _LORA.fullmatch(key):
            halves.setdefault(match["layer"], {})[match["part"]] = value
        elif not _COPY.fullmatch(key):
            unknown.append(f"{_CROSS}{key}")
    known = (_TEXT, _IMAGE, _CROSS, "optimizer.", "lora_config.")
    _refuse(file, [*unknown, *(key for key in file.weights if not key.startswith(known))])
    alpha = _number(file, _ALPHA, 1.0)
    lora = {layer: _pair(file, layer, parts, alpha) for layer, parts in halves.items()}
    return Content(Layout.UNOFFICIAL, *_adapters(file), _both(file, visual), lora)


def _elite(file: WeightFile) -> Content:
    whole, text = {}, {}
    for key, value in file.weights.items():
        if match := _ELITE.fullmatch(key):
            whole[f"{_dotted(match['path'])}.{match['layer']}"] = value
        else:
            text[key] = value
    _refuse(file, [key for key in text if not key.startswith(("mapping_", "mapping_patch_"))])
    return Content(Layout.ELITE, text, {}, {}, whole=whole)


def _dotted(path: str) -> str:
    """diffusers' path of a name with _ for every dot."""
    path = _NUMBERED.sub(r".\1", path)  # down_blocks.0_attentions.0_transformer_blocks.0_attn2
    for name in ("attentions", "transformer_blocks", "attn2"):
        path = path.replace(f"_{name}", f".{name}")
    return path


def _adapters(file: WeightFile) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    text, image = below(file.weights, _TEXT), below(file.weights, _IMAGE)
    for prefix, found in ((_TEXT, text), (_IMAGE, image)):
        if not found:
            raise _incomplete(file, f"{prefix}* is missing")
    return text, image


def _both(file: WeightFile, visual: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    if not visual:
        raise _incomplete(file, "the keys and values of its image branch are missing")
    for path, layers in visual.items():
        if len(layers) < 2:
            raise _incomplete(file, f"{path} has keys or values alone")
    return {path: (layers["to_k"], layers["to_v"]) for path, layers in visual.items()}


def _pair(file: WeightFile, layer: str, parts: Mapping[str, Tensor], alpha: float | None) -> LoraPair:
    if "A" not in parts or "B" not in parts or parts["A"].shape[:1] != parts["B"].shape[1:]:
        raise _incomplete(file, f"the LoRA of {layer} has halves that are missing or do not fit")
    return LoraPair(parts["A"], parts["B"], alpha)


def _number(file: WeightFile, key: str, otherwise: float) -> float:
    try:
        return float(file.metadata.get(key, otherwise))
    except ValueError:
        raise _incomplete(file, f"its {key} is {file.metadata[key][:20]!r}") from None


def _refuse(file: WeightFile, unknown: Iterable[str]) -> None:
    if keys := sorted(unknown):
        some = ", ".join(repr(key[:80]) for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        raise LikenessError(
            f"{file.name!r} holds keys that no PhotoVerse file has ({some}): download it again, or choose another."
        )


def _incomplete(file: WeightFile, why: str) -> LikenessError:
    return LikenessError(f"{file.name!r} is not a complete PhotoVerse file ({why}): download it again.")
