"""Custom Diffusion's files (arXiv 2212.04488): keys and values of cross-attention, and words of their own.

    K = W_k c    V = W_v c    W trained in full; with the option also queries and output

    file                                    layout
    delta.bin                               {'unet': {diffusers' name: W}, 'modifier_token': {'<new1>': (d,)}}
    the same for SDXL                       a token is a list of (768,) and (1280,)
    compressed_delta.bin                    {'u': (o, r), 'v': (r, d)} in place of W:  W = W0 + u v
    delta_epoch=....ckpt                    {'state_dict': {CompVis' name: W, 'embed': (n, d) or flat (n d,)}}
    pytorch_custom_diffusion_weights.*      <attention>.processor.to_k_custom_diffusion.weight, an empty {} per attn1
    <new1>.bin, embeddings/<new1>.pt        {'<new1>': (d,)}
    our .safetensors                        processors' names, and modifier_token.<new1>.clip_l (n, d)

Weights are kept by diffusers' name, whatever the file calls them. A file may mix layouts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LikenessError
from .embedding_files import TokenEmbedding
from .families import CLIP_G, CLIP_L, OTHER, TEXT_ENCODERS, of_text_width, text_encoder_of_width
from .files import flatten, read_content
from .lora import LoraPair

Weights = Mapping[str, Tensor]
SHOWN = 3  # names in a sentence


class Layout(Enum):
    """How a file is laid out; the value is what users read."""

    DELTA = "delta.bin of the diffusers code"
    COMPRESSED = "compressed delta"
    COMPVIS = "CompVis checkpoint"
    PROCESSORS = "huggingface attention processors"
    TOKENS = "token file"


@dataclass(frozen=True, eq=False)
class Concept:
    """What a file holds of a person or thing.

    weights: by diffusers' name of the weight, whole ones or low-rank differences to the base model. tokens: by the word
    that prompts say. text: whole text encoders by kind, which a few files hold. metadata: of the file.
    """

    name: str
    layouts: tuple[Layout, ...]
    weights: Mapping[str, Tensor | LoraPair]
    tokens: Mapping[str, TokenEmbedding]
    text: Mapping[str, Weights] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_width(self) -> int | None:
        """Channels of the text that the weights read; None where the file has no keys or values."""
        found = (value for name, value in self.weights.items() if name.endswith(("to_k.weight", "to_v.weight")))
        first = next(found, None)
        return None if first is None else (first.down if isinstance(first, LoraPair) else first).shape[1]

    @property
    def id(self) -> str:
        """Tells what concepts do to a model apart, whatever their files are called."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.weights.items()):
            for part in (value.up, value.down) if isinstance(value, LoraPair) else (value,):
                digest.update(f"{name} {tuple(part.shape)}".encode() + _few(part))
        return digest.hexdigest()

    @property
    def phrases(self) -> list[str]:
        """What prompts call each word's concept, as in '<new1> cat', as far as the file says it."""
        classes = self.metadata.get("ss_class_word", "").split(", ")
        classes += [""] * len(self.tokens)
        return [f"{word} {kind}".strip() for word, kind in zip(self.tokens, classes, strict=False)]

    def called(self, words: Iterable[str]) -> Concept:
        """The same with these words in the place of its own, in their order.

        Raises LikenessError where they are not as many, or one is given twice.
        """
        words = list(words)
        if len(words) != len(self.tokens) or len({word.lower() for word in words}) < len(words):
            raise LikenessError(
                f"{self.name!r} has {len(self.tokens)} words of its own ({', '.join(self.tokens) or 'none'}) and gets "
                f"{len(words)} names: write as many different ones, separated by spaces, or leave the field empty."
            )
        return replace(self, tokens=dict(zip(words, self.tokens.values(), strict=True)))


# Reading --------------------------------------------------------------------------------------------------------------

_LAYER = r"(?:to_[qkv]\.weight|to_out\.0\.(?:weight|bias))"
_WEIGHT = re.compile(
    rf"(?:unet\.)?(?P<name>(?:(?:down|up)_blocks\.\d+|mid_block)\..+\.attn2\.{_LAYER})(?P<half>\.[uv])?"
)
_PROCESSOR = re.compile(
    r"(?:unet\.)?(?P<layer>.+\.attn2)\.processor\.(?P<part>to_[qkv]|to_out)_custom_diffusion(?P<rest>(?:\.0)?\.\w+)"
)
_COMPVIS = re.compile(
    rf"model\.diffusion_model\.(?P<side>input_blocks|middle_block|output_blocks)\.(?P<at>[\d.]+?)"
    rf"(?P<rest>\.transformer_blocks\.\d+\.attn2\.{_LAYER})"
)
_TOKEN = re.compile(r"modifier_token\.(?P<word>.+?)(?P<part>\.(?:0|1|clip_l|clip_g|clip_h))?")
_TEXT = re.compile(r"(?P<tower>text_encoder(?:_2)?)\.(?P<name>.+)")
_TOKEN_FILE = re.compile(r"<.+>|[^.\s]+")
_TEXT_NAMES = {"text_encoder": CLIP_L.name, "text_encoder_2": CLIP_G.name}


def load_concept(path: Path) -> Concept:
    """The concept in a file of any layout. Pickled code is never run.

    Raises LikenessError naming the file where it is not one, or not all of it is understood.
    """
    content, metadata = read_content(path)
    return read_concept(content, path.name, metadata)


def read_concept(
    content: Mapping[str, Any], name: str, metadata: Mapping[str, str] | None = None, token_width: int | None = None
) -> Concept:
    """The concept in a loaded file. token_width: of vectors that lie flat, one after the other; None: as wide as the
    text that the weights read."""
    if not isinstance(content, Mapping):
        raise LikenessError(
            f"{name!r} is not a Custom Diffusion file (it holds a {type(content).__name__}): choose another."
        )
    reader = _Reader(name)
    try:
        flat = flatten(content, lists=True)
    except ValueError as error:
        raise LikenessError(f"{name!r} is damaged ({error}): download it again.") from error
    for key, value in flat.items():
        reader.take(key.removeprefix("state_dict."), value)
    return reader.concept(metadata or {}, token_width)


class _Reader:
    """Collects a file's entries."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._weights: dict[str, Tensor] = {}
        self._halves: dict[str, dict[str, Tensor]] = {}
        self._tokens: dict[str, dict[str, Tensor]] = {}
        self._text: dict[str, dict[str, Tensor]] = {}
        self._embed: Tensor | None = None
        self._unknown: list[str] = []
        self._layouts: set[Layout] = set()

    def take(self, key: str, value: Tensor) -> None:
        """One tensor."""
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise LikenessError(f"{self._name!r} holds values that are not numbers ({key}): choose another file.")
        if key == "embed":
            self._embed = value
            self._layouts.add(Layout.COMPVIS)
        elif match := _PROCESSOR.fullmatch(key):
            self._whole(f"{match['layer']}.{match['part']}{match['rest']}", key, value, Layout.PROCESSORS)
        elif (match := _WEIGHT.fullmatch(key)) and match["half"]:
            self._halves.setdefault(match["name"], {})[match["half"][1:]] = value
            self._layouts.add(Layout.COMPRESSED)
        elif match:
            self._whole(match["name"], key, value, Layout.DELTA)
        elif match := _COMPVIS.fullmatch(key):
            block = _diffusers_block(match["side"], match["at"])
            self._whole(None if block is None else f"{block}{match['rest']}", key, value, Layout.COMPVIS)
        elif match := _TOKEN.fullmatch(key):
            self._tokens.setdefault(match["word"], {})[(match["part"] or ".")[1:]] = value
        elif match := _TEXT.fullmatch(key):
            if value.is_floating_point():  # positions are numbers that every encoder has
                self._text.setdefault(_TEXT_NAMES[match["tower"]], {})[match["name"]] = value
        elif _TOKEN_FILE.fullmatch(key) and value.ndim in (1, 2) and value.is_floating_point():
            self._tokens.setdefault(key, {})[""] = value
        else:
            self._unknown.append(key)

    def _whole(self, name: str | None, key: str, value: Tensor, layout: Layout) -> None:
        expected = 1 if key.endswith(".bias") else 2
        if name is None or _WEIGHT.fullmatch(name) is None or value.ndim != expected:
            self._unknown.append(key)
            return
        self._weights[name] = value
        self._layouts.add(layout)

    def concept(self, metadata: Mapping[str, str], token_width: int | None) -> Concept:
        """What was collected. LikenessError where it is nothing, or where something is not understood."""
        name = self._name
        if not (self._weights or self._halves or self._tokens or self._embed is not None):
            raise LikenessError(
                f"{name!r} is not a Custom Diffusion file (none of its {len(self._unknown)} entries is a key, a value "
                "or a word): choose a delta.bin, pytorch_custom_diffusion_weights or one that was trained here."
            )
        if self._unknown:
            raise LikenessError(
                f"{name!r} holds {len(self._unknown)} entries that do not belong to Custom Diffusion "
                f"({some_of(self._unknown)}): choose a file that holds only keys and values of cross-attention."
            )
        weights = {**self._weights, **{layer: self._pair(layer, parts) for layer, parts in self._halves.items()}}
        layouts = tuple(layout for layout in Layout if layout in self._layouts) or (Layout.TOKENS,)
        concept = Concept(name, layouts, weights, {}, self._text, metadata)
        tokens = {word: _embedding(name, word, parts) for word, parts in self._tokens.items()}
        if self._embed is not None:
            rows = _rows(name, self._embed, token_width or concept.text_width)
            numbered = enumerate(rows.split(1), 1)
            tokens |= {f"<new{n}>": TokenEmbedding({text_encoder_of_width(r.shape[1]).name: r}) for n, r in numbered}
        return replace(concept, tokens=tokens)

    def _pair(self, layer: str, parts: Mapping[str, Tensor]) -> LoraPair:
        up, down = parts.get("u"), parts.get("v")
        if up is None or down is None or up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise LikenessError(
                f"{self._name!r} is damaged (the halves u and v of {layer} are missing or do not fit each other): "
                "download it again."
            )
        return LoraPair(down, up)


def _diffusers_block(side: str, at: str) -> str | None:
    """CompVis' block of an SD1.x UNet -> diffusers'; None for one without cross-attention."""
    if side == "middle_block":
        return "mid_block.attentions.0" if at == "1" else None
    match = re.fullmatch(r"(\d+)\.1", at)
    if match is None:
        return None
    number = int(match[1])
    if side == "input_blocks":
        level, place = divmod(number - 1, 3)
        return f"down_blocks.{level}.attentions.{place}" if number in (1, 2, 4, 5, 7, 8) else None
    return f"up_blocks.{number // 3}.attentions.{number % 3}" if 3 <= number <= 11 else None


def _embedding(name: str, word: str, parts: Mapping[str, Tensor]) -> TokenEmbedding:
    """A word's vectors by text encoder, whichever way the file orders them."""
    vectors, encoders = {}, (CLIP_L.name, CLIP_G.name)
    for part, value in parts.items():
        rows = value.unsqueeze(0) if value.ndim == 1 else value
        if rows.ndim != 2 or not len(rows):
            raise LikenessError(f"{name!r} is damaged (the word {word} is {tuple(value.shape)}): download it again.")
        kind = {"": text_encoder_of_width(rows.shape[1]).name, "0": encoders[0], "1": encoders[1]}.get(part, part)
        vectors[kind] = rows
    return TokenEmbedding(vectors)


def _rows(name: str, embed: Tensor, width: int | None) -> Tensor:
    """(n, d) or flat (n d,) -> (n, d)"""
    if embed.ndim == 2:
        return embed
    width = width or CLIP_L.width
    if embed.ndim != 1 or embed.numel() % width or not embed.numel():
        raise LikenessError(
            f"{name!r} is damaged (its words are {tuple(embed.shape)}, which is not a multiple of {width}): download "
            "it again."
        )
    return embed.reshape(-1, width)


def some_of(names: Iterable[str]) -> str:
    """A few of them."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[-90:] for name in names[:SHOWN]) + more


# On a base model ------------------------------------------------------------------------------------------------------


def is_changeable(name: str) -> bool:
    """Whether Custom Diffusion may change a weight of this name in diffusers."""
    return _WEIGHT.fullmatch(name) is not None


def check_base(concept: Concept, base: Weights, model: str = "the MODEL") -> None:
    """LikenessError where a concept's weights are of another base model. base: its own, by diffusers' name."""
    keys = [value for name, value in base.items() if name.endswith("attn2.to_k.weight")]
    ours, theirs = concept.text_width, keys[0].shape[1] if keys else 0
    if ours is not None and ours != theirs:
        raise LikenessError(
            f"{concept.name!r} was made for text of width {ours} ({_family(ours)}) and {model} reads {theirs} "
            f"({_family(theirs)}): load the base model that it was trained on."
        )
    strange = [name for name in concept.weights if name not in base]
    if strange:
        raise LikenessError(
            f"{len(strange)} of the {len(concept.weights)} weights in {concept.name!r} are of layers that {model} does "
            f"not have ({some_of(strange)}): load the base model that it was trained on."
        )
    for name, value in concept.weights.items():
        shape = (value.up.shape[0], value.down.shape[1]) if isinstance(value, LoraPair) else tuple(value.shape)
        if shape != tuple(base[name].shape):
            raise LikenessError(
                f"{concept.name!r} does not fit {model}: {name} is {shape} in the file and {tuple(base[name].shape)} "
                "there. Load the base model that it was trained on."
            )


def base_signature(base: Weights) -> str:
    """A few values of a base model's keys and values, for the file of what was trained on it."""
    return " ".join(f"{value:.4g}" for value in _sampled(base))


def is_other_base(signature: str, base: Weights) -> bool:
    """Whether a file says that it was trained on another base than this, up to what half precision does to one."""
    try:
        noted = [float(value) for value in signature.split()]
    except ValueError:
        return False
    ours = _sampled(base)
    return bool(noted) and not (
        len(noted) == len(ours)
        and all(math.isclose(one, other, rel_tol=0.02, abs_tol=1e-4) for one, other in zip(noted, ours, strict=True))
    )


def _sampled(base: Weights) -> list[float]:
    names = sorted(name for name in base if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
    return [base[name][n % len(base[name]), n % base[name].shape[1]].item() for n, name in enumerate(names[:32])]


def _few(value: Tensor) -> bytes:
    few = value.detach().flatten()[:: max(1, value.numel() // 64)][:64]
    return few.to("cpu", torch.float16).numpy().tobytes()


def _family(width: int) -> str:
    family = of_text_width(width)
    return "another model" if family is OTHER else family.title


def left_alone(concept: Concept, base: Weights) -> list[str]:
    """Keys and values of the base model that a concept has nothing for, and so stay as they are."""
    theirs = [name for name in base if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return [name for name in theirs if name not in concept.weights]


def changes_of(concept: Concept, base: Weights) -> dict[str, Tensor | LoraPair]:
    """W − W0 in float32, or the pair where the file has one, by the layer's path (a bias by its whole name)."""
    check_base(concept, base)
    changes: dict[str, Tensor | LoraPair] = {}
    for name, value in concept.weights.items():
        if isinstance(value, LoraPair):
            if value.rank:  # one of rank 0 changes nothing
                changes[name.removesuffix(".weight")] = value
        else:
            changes[name.removesuffix(".weight")] = value.float() - base[name].float()
    return changes


def whole_weight(concept: Concept, name: str, base: Tensor) -> Tensor:
    """A weight as it is with a concept, which may leave it alone: W, float32."""
    value = concept.weights.get(name)
    if value is None:
        return base.float()
    return base.float() + value.delta() if isinstance(value, LoraPair) else value.float()


def whole_weights(concept: Concept, base: Weights) -> dict[str, Tensor]:
    """Every weight that a concept changes, as it is with it."""
    check_base(concept, base)
    return {name: whole_weight(concept, name, base[name]) for name in concept.weights}


# Writing --------------------------------------------------------------------------------------------------------------


def processor_names(weights: Mapping[str, Tensor | LoraPair]) -> dict[str, Tensor]:
    """Whole weights under huggingface's names; pairs, which it has none for, under the official compressed ones."""
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if isinstance(value, LoraPair):
            tensors |= {f"unet.{name}.u": value.up, f"unet.{name}.v": value.down}
            continue
        layer, _, rest = name.rpartition(".attn2.")
        part, _, rest = rest.partition(".")
        tensors[f"{layer}.attn2.processor.{part}_custom_diffusion.{rest}"] = value
    return tensors


def concept_tensors(concept: Concept) -> dict[str, Tensor]:
    """The tensors of the .safetensors file to write."""
    tokens = {
        f"modifier_token.{word}.{kind}": rows
        for word, token in concept.tokens.items()
        for kind, rows in token.vectors.items()
    }
    text = {
        f"{next(n for n, k in _TEXT_NAMES.items() if k == kind)}.{name}": value
        for kind, state in concept.text.items()
        for name, value in state.items()
    }
    return {**processor_names(concept.weights), **tokens, **text}


def delta_content(concept: Concept) -> dict[str, Any]:
    """What the official delta.bin holds: one vector a word, a list of two for SDXL.

    Raises LikenessError for words of several vectors, which it has no place for.
    """
    tokens: dict[str, Any] = {}
    order = [encoder.name for encoder in TEXT_ENCODERS]
    for word, token in concept.tokens.items():
        if token.count != 1:
            raise LikenessError(
                f"The word {word} has {token.count} vectors, and delta.bin has room for one: save it as .safetensors."
            )
        rows = [token.vectors[kind][0] for kind in sorted(token.vectors, key=order.index)]
        tokens[word] = rows if len(rows) > 1 else rows[0]
    unet = {
        name: {"u": value.up, "v": value.down} if isinstance(value, LoraPair) else value
        for name, value in concept.weights.items()
    }
    return {"unet": unet, "modifier_token": tokens}


def write_concept(concept: Concept, path: Path) -> None:
    """Our .safetensors."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in concept_tensors(concept).items()}
    save_file(tensors, path, dict(concept.metadata))


def write_delta(concept: Concept, path: Path) -> None:
    """The official delta.bin."""
    torch.save(delta_content(concept), path)
