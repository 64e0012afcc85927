"""What a weight file's pickle asks of its reader, looked at before it is read.

`torch.load(..., weights_only=True)` runs no code of the file's, but it does what the pickle says, however long that
takes: sixty kilobytes that encode a text as Punycode take two minutes, a tuple of tuples of itself is hashed for ever.
Weight files hold names, numbers and tensors, so what they never need is refused, and everything else has a bound.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import LikenessError

_MOST_BYTES = 128 << 20  # of the pickle itself, beside which the tensors' bytes lie
_MOST_STEPS = 1_500_000  # a checkpoint of 10,000 tensors takes 400,000
_MOST_CALLS = 100_000  # of functions: two for each tensor
_MOST_WORK = 10_000_000  # values inside of tuples, each time such a tuple is used
_MOST_ODD = (
    2_000  # keys and list items that are neither numbers, texts nor tensors: their hashes may be made to collide
)
_MOST_BITS = 72  # of a whole number: many with one hash exist beyond
_MOST_RECORDS = 200_000  # in an archive
_LEGACY_PICKLES = 5  # one after the other, in the form before torch 1.6
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NEVER = frozenset({"builtins bytearray", "__builtin__ bytearray"})  # fills as much memory as it is told
_CODECS = frozenset({"_codecs encode"})
_ARCHIVE, _PICKLE = b"PK", b"\x80"


_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET", "DUP"})
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "INST", "OBJ"})
_ADDING = frozenset({"SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS"})


class _Group(NamedTuple):
    """A tuple, or what a function made of one."""

    size: int  # values in it, counted as often as a walk through it meets them
    last: Any


class _Function(NamedTuple):
    name: str


_VALUE = 1  # a number, a list, a tensor: whatever costs nothing to hash or cannot be hashed


def check_pickle(path: Path) -> None:
    """Raise LikenessError for a weight file of torch's that would take its reader absurdly long or much memory.

    A file of another kind, or a damaged one, passes: its reader says so.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head.startswith(_ARCHIVE):
                _check_archive(path)
            elif head.startswith(_PICKLE):
                rest = _MOST_BYTES
                for _ in range(_LEGACY_PICKLES):
                    rest = _check_stream(_Bounded(file, rest), path.name)
    except (ValueError, OSError, IndexError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        if isinstance(error, LikenessError):
            raise


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if len(records) > _MOST_RECORDS or len({record.filename.lower() for record in records}) < len(records):
            raise _refused(path.name, "too many records, or two with the same name")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _refused(path.name, "compressed records, which weight files never do")
        for record in records:
            if record.filename.endswith("data.pkl"):
                with archive.open(record) as file:
                    _check_stream(_Bounded(file, _MOST_BYTES), path.name)


class _Bounded:
    """A file that ends in an error where a pickle gets too long."""

    def __init__(self, file: Any, most: int) -> None:
        self._file: BinaryIO = file
        self.left = most

    def _taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise OverflowError
        return data

    def read(self, size: int) -> bytes:
        return self._taken(self._file.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self.left + 1))


def _check_stream(file: _Bounded, name: str) -> int:
    """Follow one pickle without building anything; returns how many bytes may still follow it."""
    reader = _Reader(name)
    try:
        for step, (operation, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
            if step > _MOST_STEPS:
                raise _refused(name, "too many steps")
            reader.take(operation, argument)
    except OverflowError:
        raise _refused(name, "too many bytes beside the tensors") from None
    return file.left


class _Reader:
    """The stack and the memory of a pickle's reader, holding how large things are in place of the things."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack: list[Any] = []
        self._marks: list[int] = []  # where they lie in the stack
        self._memory: dict[int, Any] = {}
        self._work = self._odd = self._calls = 0

    def take(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        """Follow one step."""
        name, stack = operation.name, self._stack
        if name in _PUTS:
            self._memory[len(self._memory) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(stack[-1] if name == "DUP" else self._memory[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
            stack.append(_VALUE)
        elif not operation.stack_before:
            stack += self._begun(name, argument)
        else:
            used = self._used(operation.stack_before)
            if operation.stack_after:
                stack.append(self._made(name, argument, used))

    def _used(self, before: list[Any]) -> list[Any]:
        """Take from the stack what an operation uses; of a list or dictionary that it adds to, only what is added."""
        if before[-1] is pickletools.stackslice:
            mark = self._marks.pop()
            used, bottom = self._stack[mark + 1 :], mark - before.index(pickletools.markobject)
        else:
            bottom = len(self._stack) - len(before)
            used = self._stack[bottom:]
        if bottom < 0:
            raise IndexError("the stack is empty")
        del self._stack[bottom:]
        for value in used:
            if isinstance(value, _Group):
                self._work += value.size
        if self._work > _MOST_WORK:
            raise _refused(self._name, "tuples nested too deeply")
        return used

    def _begun(self, name: str, argument: Any) -> list[Any]:
        """What an operation that uses nothing leaves on the stack."""
        if name == "GLOBAL":
            return [self._function(argument)]
        if name == "EMPTY_TUPLE":
            return [_Group(1, None)]
        if isinstance(argument, str):
            return [argument]
        if name in ("PROTO", "FRAME"):
            return []
        if isinstance(argument, int) and argument.bit_length() > _MOST_BITS and argument != _LEGACY_MAGIC:
            raise _refused(self._name, "integers of absurd length")
        return [_VALUE]

    def _made(self, name: str, argument: Any, used: list[Any]) -> Any:
        """What an operation makes of what it used."""
        if name in _TUPLES:
            return _Group(1 + sum(_size(value) for value in used), used[-1] if used else None)
        if name == "STACK_GLOBAL":
            return self._function(" ".join(map(str, used)))
        if name in _CALLS:
            return self._called(name, used)
        if name in _ADDING:
            added = used[1:] if name in ("SETITEM", "APPEND") else used
            self._count_odd(added[::2] if name.startswith("SETITEM") else added)
        return _VALUE

    def _function(self, name: str) -> _Function:
        if name in _NEVER:
            raise _refused(self._name, f"the function {name!r}")
        return _Function(name)

    def _called(self, name: str, used: list[Any]) -> Any:
        self._calls += 1
        if self._calls > _MOST_CALLS:
            raise _refused(self._name, "too many calls")
        function, *arguments = used or [None]
        given = arguments[-1] if arguments else None
        if not isinstance(function, _Function):
            return _VALUE
        if function.name in _CODECS and getattr(given, "last", None) != "latin1":
            raise _refused(self._name, "a text in an encoding that weight files never use")
        makes_tensor = "_rebuild" in function.name or name == "BUILD"
        return _VALUE if makes_tensor else _Group(1 + _size(given), None)

    def _count_odd(self, values: list[Any]) -> None:
        self._odd += sum(isinstance(value, _Group) for value in values)
        if self._odd > _MOST_ODD:
            raise _refused(self._name, "too many keys that are neither texts nor numbers")


def _size(value: Any) -> int:
    return value.size if isinstance(value, _Group) else 1


def _refused(name: str, what: str) -> LikenessError:
    return LikenessError(
        f"The file {name!r} asks for more than tensors ({what}) and was not opened: get a .safetensors file of it."
    )
