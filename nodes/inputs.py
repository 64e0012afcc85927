"""What comes in at a node, checked alike at every node before it runs.

The host holds widgets to their types and ranges, but not what arrives over a link: another node's number may be NaN or
far out of range, its text no text, its image none. A node that is registered is checked without a word of its own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..checks import as_mask, check_number
from ..errors import LikenessError, logger
from ..faces.identity import Identity
from .choices import named

log = logger(__name__)

AnyNode = TypeVar("AnyNode", bound=Any)
_MARK = "likeness_checked"  # on an `execute` that checks
WidgetCheck = Callable[[Any, Any, str], Any]  # the widget, the value and what to call it -> the value the node gets


def checked(node: AnyNode) -> AnyNode:
    """The node class, whose `execute` refuses, from now on, values that no input of their kind can have."""
    plain = node.execute.__func__
    if hasattr(plain, _MARK):  # registered before
        return node
    positions = list(inspect.signature(plain).parameters)[1:]

    @functools.cache
    def widgets() -> dict[str, Any]:
        return {widget.id: widget for widget in node.define_schema().inputs if widget.get_io_type() in _CHECKS}

    @functools.wraps(plain)
    def execute(cls: type, *arguments: Any, **inputs: Any) -> Any:
        try:
            return run(cls, *arguments, **inputs)
        except LikenessError as error:
            log.debug("[likeness] Where it was found out:", exc_info=error)
            mistake = LikenessError(str(error))
        raise mistake  # outside of the handler: hosts show the trace, and where we found out helps nobody to mend it

    def run(cls: type, *arguments: Any, **inputs: Any) -> Any:
        inputs = dict(zip(positions, arguments, strict=False)) | inputs
        for name, widget in widgets().items():
            kind = widget.get_io_type()
            if inputs.get(name) is not None:
                inputs[name] = _CHECKS[kind](widget, inputs[name], f"The input {_label(widget)}")
            elif name in inputs and kind in _WIDGETS:  # linked to an output that is empty
                if not widget.optional:
                    raise LikenessError(
                        f"The input {_label(widget)} is empty: connect another output, or type a value."
                    )
                del inputs[name]
        return plain(cls, **inputs)

    setattr(execute, _MARK, True)
    node.execute = classmethod(execute)
    return node


def _label(widget: Any) -> str:
    """What the user reads at the input."""
    return getattr(widget, "display_name", None) or widget.id


def _number(widget: Any, value: Any, what: str) -> Any:
    least, most = getattr(widget, "min", None), getattr(widget, "max", None)
    return check_number(value, what, -math.inf if least is None else least, math.inf if most is None else most)


def _whole_number(widget: Any, value: Any, what: str) -> Any:
    _number(widget, value, what)
    if not isinstance(value, numbers.Integral):
        raise LikenessError(f"{what} is {value!r}: enter a whole number.")
    return value


def _text(widget: Any, value: Any, what: str) -> Any:
    if not isinstance(value, str):
        raise LikenessError(f"{what} is a {type(value).__name__}: connect or type a text.")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise LikenessError(f"{what} holds characters that are not text: type it again.")
    return value


def _choice(widget: Any, value: Any, what: str) -> Any:
    """Whether the list has it is asked where it is used: lists of files change while the page is open."""
    if len(named(value, _label(widget))) > _LONGEST_CHOICE:
        raise LikenessError(f"{what} is not an entry of the list: choose one.")
    return _text(widget, value, what)


def _image(widget: Any, value: Any, what: str) -> Any:
    """Hosts may hand over half precision, which is too coarse to be looked at."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise LikenessError(f"{what} is not an image with values from 0 to 1: connect an IMAGE.")
    if value.ndim not in (3, 4) or value.shape[-1] not in (1, 2, 3, 4):
        raise LikenessError(
            f"{what} has shape {tuple(value.shape)}, not (batch, height, width, channels): connect an IMAGE."
        )
    if not value.numel():
        raise LikenessError(f"{what} is empty, its shape is {tuple(value.shape)}: connect at least one image.")
    return value.float()


def _identity(widget: Any, value: Any, what: str) -> Any:
    if not isinstance(value, Identity):
        raise LikenessError(
            f"{what} holds a {type(value).__name__}, not an identity of this pack: connect Identity from Photos or "
            "Load Identity."
        )
    value.check()
    return value


def _made_by(module: str, name: str, maker: str) -> WidgetCheck:
    """Values of one class of this pack, which other packs' values of the same socket name are not."""

    def check(widget: Any, value: Any, what: str) -> Any:
        if not isinstance(value, getattr(importlib.import_module(module, __package__), name)):
            raise LikenessError(f"{what} holds a {type(value).__name__}, which does not fit: connect {maker}.")
        return value

    return check


_LONGEST_CHOICE = 1000  # letters
_WIDGETS = ("FLOAT", "INT", "STRING", "COMBO", "BOOLEAN")
_CHECKS: dict[str, WidgetCheck] = {
    "FLOAT": _number,
    "INT": _whole_number,
    "STRING": _text,
    "COMBO": _choice,
    "BOOLEAN": lambda widget, value, what: bool(value),
    "LIKENESS_EMBEDS": _made_by("..adapters.ip_adapter.embeds", "ImageEmbeds", "Encode Reference or Load Embeds"),
    "LIKENESS_ADAPTER_OPTIONS": _made_by(".references", "Options", "the options node of this adapter"),
    "IMAGE": _image,
    "MASK": lambda widget, value, what: as_mask(value, what),
    "IDENTITY": _identity,
}
