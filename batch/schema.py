"""What the inputs of nodes take, by a server's `/object_info`, and values as they are typed into a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .graph import link_of
from .problems import Fault, nearest

JSON_CELL = "=json:"
LONGEST_TEXT = 100_000  # letters
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload")
_IDENTITY = ("LikenessLoadIdentity", "file")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_SECRET = re.compile(
    r"\b(sk-[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|comfyui-[0-9a-f]{32,}"
    r"|xox[abp]-[\w-]{10,}|AIza[\w-]{30,})|\bBearer\s+[\w.~+/-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\w+://[^/\s:@]+:[^@/\s]+@"
)
_SECRET_NAME = re.compile(r"(^|[._-])(api_?key|auth_?token|access_?token|password|secret)\w*$", re.IGNORECASE)


class CellKind(Enum):
    """What a cell for an input holds."""

    INT = "a whole number"
    FLOAT = "a number"
    BOOLEAN = "true or false"
    STRING = "text"
    COMBO = "one of a list"
    UPLOAD = "a file"
    IDENTITY = "an identity file"
    OTHER = "a link"


@dataclass(frozen=True)
class Spec:
    """One input of a class of nodes."""

    kind: CellKind
    types: frozenset[str] = frozenset()  # what may be linked to it; '*' takes all
    required: bool = False
    least: float = -math.inf
    most: float = math.inf
    options: Mapping[str, Any] = field(default_factory=dict)  # how a choice is written -> the choice
    open_ended: bool = False  # choices that the server finds elsewhere
    pictures: bool = False  # an upload that must be an image

    def parse(self, cell: Any) -> Any:
        """The value that a cell means; Fault when this input cannot take it. Files are looked up by the caller."""
        if isinstance(cell, str) and cell.startswith(JSON_CELL):
            return _json(cell[len(JSON_CELL) :])
        return _PARSERS[self.kind](cell, self)


@dataclass(frozen=True)
class NodeClass:
    """What a server says of one class."""

    name: str
    inputs: Mapping[str, Spec]
    outputs: Sequence[str]
    is_output: bool
    paid: bool

    def spec(self, name: str) -> Spec | None:
        """The input of this name; those that grow with use (`images.image0`) are described by their beginning."""
        if name in self.inputs:
            return self.inputs[name]
        growing = self.inputs.get(name.split(".")[0]) if "." in name else None
        return Spec(CellKind.OTHER, frozenset("*")) if growing else None


class Nodes:
    """The classes of one server, read when they are asked for."""

    def __init__(self, object_info: Mapping[str, Any]):
        self._info = object_info
        self._read: dict[str, NodeClass] = {}

    def __contains__(self, name: str) -> bool:
        return isinstance(self._info.get(name), dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self._info)

    def __getitem__(self, name: str) -> NodeClass:
        if name not in self._read:
            self._read[name] = _node_class(name, self._info[name])
        return self._read[name]

    def only(self, names: set[str]) -> Nodes:
        """These classes alone: a server describes hundreds."""
        return Nodes({name: self._info[name] for name in names if name in self})


def _node_class(name: str, info: Mapping[str, Any]) -> NodeClass:
    inputs = {}
    groups = info.get("input") or {}
    for group in ("required", "optional"):
        for given, declared in (groups.get(group) or {}).items():
            inputs[given] = _spec(name, given, declared, group == "required")
    return NodeClass(
        name=name,
        inputs=inputs,
        outputs=[_type(output) for output in info.get("output") or []],
        is_output=bool(info.get("output_node")),
        paid=bool(info.get("api_node")),
    )


def _type(output: Any) -> str:
    return output if isinstance(output, str) else "COMBO"


def _spec(node: str, name: str, declared: Any, required: bool) -> Spec:
    declared = declared if isinstance(declared, (list, tuple)) and declared else ["*"]
    kind, settings = declared[0], declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
    choices = kind if isinstance(kind, list) else settings.get("options")
    types = frozenset(["COMBO"] if isinstance(kind, list) else [part.strip() for part in str(kind).split(",")])
    if (node, name) == _IDENTITY:
        return Spec(CellKind.IDENTITY, types, required)
    if any(settings.get(upload) for upload in _UPLOADS):
        return Spec(
            CellKind.UPLOAD, types, required, options=_options(choices), pictures=bool(settings.get("image_upload"))
        )
    if "COMBO" in types:
        remote = bool(settings.get("remote")) or not isinstance(choices, list) or bool(settings.get("multiselect"))
        return Spec(CellKind.COMBO, types, required, options=_options(choices), open_ended=remote)
    for plain in (CellKind.INT, CellKind.FLOAT, CellKind.BOOLEAN, CellKind.STRING):
        if plain.name in types:
            return Spec(plain, types, required, _bound(settings, "min", -math.inf), _bound(settings, "max", math.inf))
    return Spec(CellKind.OTHER, types, required)


def _bound(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _options(choices: Any) -> dict[str, Any]:
    return {str(choice): choice for choice in choices} if isinstance(choices, list) else {}


# --- cells


def _json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Fault(f"is not valid JSON ({error})", 'write it as =json:["one", "two"]') from None
    if link_of(value):
        raise Fault("is a link to a node", "links belong in the workflow; a cell holds a value")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _int(cell: Any, spec: Spec) -> int:
    text = cell.strip() if isinstance(cell, str) else cell
    if isinstance(text, bool) or not isinstance(text, (int, str, float)):
        raise Fault("is not a whole number", "write one such as 20")
    try:
        if isinstance(text, str) and not re.fullmatch(r"[-+]?[0-9]{1,40}", text):
            raise ValueError
        if isinstance(text, float) and not text.is_integer():
            raise ValueError
        value = int(text)
    except (ValueError, OverflowError):
        hint = "write one such as 20"
        if isinstance(text, str) and re.fullmatch(r"[-+]?\d+\.0*", text):
            hint = f"write {text.split('.')[0]}"
        raise Fault("is not a whole number", hint) from None
    return int(_in_range(value, spec))


def _float(cell: Any, spec: Spec) -> float:
    text = cell.strip() if isinstance(cell, str) else cell
    if isinstance(text, bool) or not isinstance(text, (int, str, float)):
        raise Fault("is not a number", "write one such as 1.5")
    if isinstance(text, str) and _DECIMAL_COMMA.fullmatch(text):
        raise Fault("is not a number", f"write {text.replace(',', '.')}, with a decimal point")
    try:
        if isinstance(text, str) and "_" in text:
            raise ValueError
        value = float(text)
    except (ValueError, OverflowError):
        raise Fault("is not a number", "write one such as 1.5") from None
    if not math.isfinite(value):
        raise Fault("is not a finite number", "write one such as 1.5")
    return _in_range(value, spec)


def _in_range(value: Any, spec: Spec) -> Any:
    if not spec.least <= value <= spec.most:
        edge = spec.least if value < spec.least else spec.most
        raise Fault("is out of range", f"write {_shown(spec.least)} to {_shown(spec.most)}, for example {_shown(edge)}")
    return value


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _boolean(cell: Any, _: Spec) -> bool:
    if isinstance(cell, bool):
        return cell
    known = {"true": True, "1": True, "false": False, "0": False}
    if (text := str(cell).strip().lower()) in known:
        return known[text]
    raise Fault("is neither true nor false", "write true or false")


def _string(cell: Any, _: Spec) -> str:
    if not isinstance(cell, str):
        raise Fault("is not text", "put it in quotes")
    return check_text(cell)


def check_text(text: str) -> str:
    """`text`; Fault where it is too long or cannot be sent."""
    if len(text) > LONGEST_TEXT:
        raise Fault(f"is longer than {LONGEST_TEXT} characters", "shorten the text")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text) or "\0" in text:
        raise Fault("holds bytes that are not text", "save the table as UTF-8")
    return text


def _combo(cell: Any, spec: Spec) -> Any:
    text = str(cell)
    if text in spec.options:
        return spec.options[text]
    if spec.open_ended:
        return check_text(text)
    raise Fault("is not among the server's choices", nearest(text, spec.options) or "the server has none of these")


def _file(cell: Any, _: Spec) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise Fault("names no file", "write a path below the folder of files")
    return check_text(cell.strip())


def _other(_: Any, spec: Spec) -> Any:
    raise Fault(f"takes a link ({', '.join(sorted(spec.types)) or 'any'}), not a value", "choose another input")


_PARSERS = {
    CellKind.INT: _int,
    CellKind.FLOAT: _float,
    CellKind.BOOLEAN: _boolean,
    CellKind.STRING: _string,
    CellKind.COMBO: _combo,
    CellKind.UPLOAD: _file,
    CellKind.IDENTITY: _file,
    CellKind.OTHER: _other,
}


def is_secret(text: Any) -> bool:
    """Whether a cell looks like a key, a token or a password, which must not be written into tables and images."""
    return isinstance(text, str) and len(text) >= 10 and bool(_SECRET.search(text))


def names_a_secret(column: str) -> bool:
    """Whether a column is named like a key or a password."""
    return bool(_SECRET_NAME.search(column))
