"""Copies of the host's modules that share nothing with them, and take part in gradients.

A host hangs on its modules whatever it needs to move their weights about: buffers that it allocated itself, raw
pointers, patches. `copy.deepcopy` clones the pointers, so that whichever copy dies first frees the memory of both. So
a module is rebuilt from what makes it one: its class, its parameters, buffers and children, and those of its other
fields that are plain data. What is not plain data belongs to whoever hung it there, and stays with them.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import logger

log = logger(__name__)

_SHARED = (type(None), bool, int, float, complex, str, bytes, type, ModuleType, BuiltinFunctionType)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_WEIGHTS = ("_parameters", "_buffers", "_modules")


@torch.inference_mode(False)
def normal_copy(module: Any) -> Any:
    """A module's copy on the CPU, frozen and in evaluation mode, which takes part in gradients though the host made
    its tensors in inference mode. Quantised weights are dequantised."""
    return _Copier().copy(module).eval()


def plain_tensor(value: Tensor, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
    """A copy that is a normal tensor: not quantised, not lazy, not of inference mode.

    A lazy one (of the device meta) becomes zeros, as the host makes it when it is needed. dtype: None keeps its own.
    """
    value = value.detach()
    if value.is_meta:
        return torch.zeros(value.shape, dtype=dtype or value.dtype)  # on the CPU
    if type(value) not in (Tensor, nn.Parameter) and hasattr(value, "dequantize"):
        value = value.to(dtype or value.dtype).dequantize()
    return value.to(device, dtype or value.dtype, copy=True)


class _Copier:
    """One copy of everything, so that what was one thing in two places is one in the copy too."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # by id: the thing itself, kept so that its id stays its own; twin

    def copy(self, value: Any) -> Any:
        if isinstance(value, _SHARED):
            return value
        if id(value) not in self._made:
            twin = self._twin(value)
            self._made.setdefault(id(value), (value, twin))
        return self._made[id(value)][1]

    def _twin(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(plain_tensor(value), requires_grad=False)
        if isinstance(value, Tensor):  # which stays where it is, because no module moves it
            return plain_tensor(value, device=value.device)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return MethodType(self.copy(value.__func__), self.copy(value.__self__))
        if isinstance(value, weakref.ref):
            return weakref.ref(self.copy(value()))
        kind = type(value)
        if kind in (tuple, frozenset):
            return kind(self.copy(item) for item in value)
        if kind in _CONTAINERS:
            twin = self._remember(value, kind())
            if kind is dict:
                twin.update((self.copy(key), self.copy(item)) for key, item in value.items())
            else:
                (twin.extend if kind is list else twin.update)(self.copy(item) for item in value)
            return twin
        return self._object(value)

    def _remember(self, value: Any, twin: Any) -> Any:
        """Before its contents are copied, which may lead back to it."""
        self._made[id(value)] = value, twin
        return twin

    def _module(self, module: nn.Module) -> nn.Module:
        twin = type(module).__new__(type(module))
        nn.Module.__init__(twin)
        self._remember(module, twin)
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in self._made:
                self._remember(buffer, plain_tensor(buffer))
        for name, value in module.__dict__.items():
            if name in _WEIGHTS or _is_plain(value):
                twin.__dict__[name] = self.copy(value)
            else:
                log.debug("[likeness] %s.%s stays with the host.", type(module).__name__, name)
        return twin

    def _function(self, function: FunctionType) -> FunctionType:
        """Itself, unless what it carries is copied too."""
        if not _carries(function):
            return function
        cells = tuple(CellType() for _ in function.__closure__ or ())
        twin = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self._remember(function, twin)
        twin.__defaults__, twin.__kwdefaults__ = self.copy(function.__defaults__), self.copy(function.__kwdefaults__)
        twin.__dict__.update(self.copy(function.__dict__))
        for cell, own in zip(cells, function.__closure__ or (), strict=True):
            for content in _contents([own]):
                cell.cell_contents = self.copy(content)
        return twin

    def _object(self, value: Any) -> Any:
        """Put together as the pickling protocol tells."""
        recipe = _recipe(value)
        if recipe is None:
            return value
        build, args, state, items, pairs = recipe
        twin = self._remember(value, build(*map(self.copy, args)))
        if state is not None:
            state = self.copy(state)
            if hasattr(twin, "__setstate__"):
                twin.__setstate__(state)
            else:
                fields, slots = state if isinstance(state, tuple) else (state, {})
                for name, field in {**(fields or {}), **slots}.items():
                    object.__setattr__(twin, name, field)
        for item in items:
            twin.append(self.copy(item))
        for key, item in pairs:
            twin[self.copy(key)] = self.copy(item)
        return twin


def _recipe(value: Any) -> tuple[Any, Sequence[Any], Any, Iterable[Any], Iterable[tuple[Any, Any]]] | None:
    """How an object is put together again, by the pickling protocol: constructor, its arguments, state, items of a list
    and of a dictionary. None for what is a global. An object that is more than its fields raises what it likes."""
    reduce = copyreg.dispatch_table.get(type(value))
    found: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
    if isinstance(found, str):
        return None
    found = (*found, None, None, None)
    return found[0], found[1], found[2], found[3] or (), found[4] or ()


def _contents(cells: Iterable[CellType]) -> Iterator[Any]:
    for cell in cells:
        try:
            content = cell.cell_contents
        except ValueError:  # of a variable that was never set
            continue
        yield content


def _surroundings(function: FunctionType) -> tuple[Any, ...]:
    """What a function was given beside its code."""
    return (
        *_contents(function.__closure__ or ()),
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__,
    )


def _carries(function: FunctionType) -> bool:
    """Whether a function leads to modules or tensors, as a lambda of a module's constructor does."""
    seen, waiting = {}, [function]
    while waiting:
        part: Any = waiting.pop()
        if isinstance(part, (nn.Module, Tensor)):
            return True
        if id(part) not in seen:
            seen[id(part)] = part
            with suppress(Exception):  # any object's own, asked for its contents
                waiting.extend(_surroundings(part) if isinstance(part, FunctionType) else _parts(part))
    return False


def _parts(value: Any) -> Iterable[Any]:
    """What an object is made of, one level down. Modules and tensors are made of nothing: they are copied as such."""
    if isinstance(value, (*_SHARED, nn.Module, Tensor)):
        return ()
    if isinstance(value, FunctionType):
        return _surroundings(value) if _carries(value) else ()
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, weakref.ref):
        return (value(),)
    if type(value) is dict:
        return (*value.keys(), *value.values())
    if type(value) in _CONTAINERS:
        return value
    recipe = _recipe(value)
    if recipe is None:
        return ()
    _build, args, state, items, pairs = recipe
    return (*args, state, *items, *(part for pair in pairs for part in pair))


def _reached(value: Any) -> Iterator[Any]:
    """The object and all that it leads to, each once. Raises what `_recipe` raises once it comes to such a thing."""
    seen, waiting = {}, [value]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            waiting.extend(_parts(part))


def _is_plain(value: Any) -> bool:
    """Whether everything in it can be copied: nothing that frees memory when it dies, nothing whose contents lie
    outside of Python, as pointers do, and no tensor on memory of somebody else's."""
    try:
        return not any(_owns(part) for part in _reached(value))
    except Exception:  # any object's own, asked for its contents
        return False


def _owns(value: Any) -> bool:
    if isinstance(value, Tensor):
        if value.device.type in ("cpu", "meta"):
            return False
        return type(value) not in (Tensor, nn.Parameter) or not value.untyped_storage().resizable()
    return hasattr(type(value), "__del__")
