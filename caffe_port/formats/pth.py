"""State_dicts as ``torch.save`` writes them, read without torch and without unpickling.

A .pth is a zip archive: ``NAME/data.pkl``, a pickle that describes the tensors, and ``NAME/data/KEY``, the
numbers of each storage. The pickle's operations are listed by ``pickletools`` and executed here on dicts, lists,
tuples, numbers and descriptions of tensors; every other operation is an error that names it.

Source: https://docs.python.org/3/library/pickletools.html for the operations; torch/serialization.py and
torch/_utils.py for the representation of tensors.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.archive import Archive
from caffe_port.formats.weights import is_shape

__all__ = ["read_pth"]

_BF16 = "bfloat16"
_STORAGES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": _BF16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_DTYPES = {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}
_REMEDY = "save only model.state_dict(): pickled objects are never read"


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_LITERALS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
)


def read_pth(archive: Archive) -> list[tuple[str, np.ndarray]]:
    """The state_dict's keys and arrays: views of the file where they are stored uncompressed.

    Raises:
        FormatError: it holds anything but tensors by name, or is damaged.
    """
    path = archive.path
    pickled = [name for name in archive.names() if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise FormatError(path, f"{len(pickled)} members named data.pkl", expected="one", remedy="fetch it again")
    folder = pickled[0].removesuffix("data.pkl")
    named = f"{folder}byteorder"
    big = named in archive.names() and archive.size(named) == 3 and archive.read(named).tobytes() == b"big"
    content = _Machine(path).run(archive.read(pickled[0]).tobytes())
    if not isinstance(content, dict):
        raise FormatError(path, _kind(content), expected="a state_dict", remedy="save model.state_dict()")
    arrays = []
    for key, value in content.items():
        if not isinstance(value, _Tensor):
            found = f"{key!r} that holds {_kind(value)}"
            raise FormatError(path, found, expected="tensors only", remedy="save only model.state_dict()")
        arrays.append((str(key), _array(archive, folder, big, value, f"{path}: {key}")))
    return arrays


def _kind(value: Any) -> str:
    if isinstance(value, _Global):
        return value.name
    return "a tensor" if isinstance(value, _Tensor) else f"a {type(value).__name__.lstrip('_').lower()}"


def _array(archive: Archive, folder: str, big: bool, tensor: _Tensor, where: str) -> np.ndarray:
    storage, name = tensor.storage, f"{folder}data/{tensor.storage.key}"
    dtype = np.dtype("<u2" if storage.dtype == _BF16 else storage.dtype).newbyteorder(">" if big else "<")
    if name not in archive.names():
        raise FormatError(where, f"no member {name}", remedy="the file is damaged: fetch it again")
    if archive.size(name) != storage.numel * dtype.itemsize:
        raise FormatError(where, f"{archive.size(name)} bytes", expected=f"{storage.numel} numbers of {storage.dtype}")
    count = prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if count and last >= storage.numel:
        raise FormatError(where, f"a tensor of shape {tensor.shape} in {storage.numel} numbers", remedy="it is damaged")
    if count > storage.numel:
        remedy = "save tensor.contiguous()"
        raise FormatError(where, f"{count} numbers of shape {tensor.shape} from {storage.numel}", remedy=remedy)
    if not count:
        return np.empty(tensor.shape, "<f4" if storage.dtype == _BF16 else dtype)
    flat = archive.view(name).view(dtype)
    steps = tuple(step * dtype.itemsize for step in tensor.strides)
    array = np.ndarray(tensor.shape, dtype, flat, tensor.offset * dtype.itemsize, steps)
    return (array.astype("<u4") << 16).view("<f4") if storage.dtype == _BF16 else array


class _Machine:
    """Executes a pickle's operations on plain values."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def refuse(self, what: str) -> FormatError:
        return FormatError(self.path, f"more than tensors ({what})", expected="a state_dict", remedy=_REMEDY)

    def damaged(self, why: object) -> FormatError:
        return FormatError(self.path, f"a pickle that is damaged ({why})", remedy="fetch it again")

    def run(self, pickle: bytes) -> Any:
        """The pickle's value."""
        try:
            for op, argument, at in pickletools.genops(io.BytesIO(pickle)):
                if op.name == "STOP":
                    return self.stack.pop()
                self.step(op.name, argument, at or 0)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise self.damaged(error) from None
        raise self.damaged("it has no end")

    def step(self, name: str, argument: Any, at: int) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _LITERALS:
            stack.append(_LITERALS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[5:]) if name[5:] else None
            stack.append(tuple(self.marked() if count is None else [stack.pop() for _ in range(count)][::-1]))
        elif name in ("APPEND", "APPENDS"):
            items = self.marked() if name == "APPENDS" else [stack.pop()]
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.marked() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            self.put(self.top(dict), items)
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, first = stack.pop(), stack.pop()
            stack.append(_Global(f"{first}.{last}"))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "BUILD" and isinstance(stack[-2], dict):
            stack.pop()  # an OrderedDict's attributes: torch's _metadata
        else:
            raise self.refuse(f"operation {name} at byte {at}")

    def marked(self) -> list[Any]:
        """Removes and returns the stack above the last mark, with the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]

    def put(self, into: dict, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) and not _counts((key,)):
                raise self.refuse(f"a key that is a {type(key).__name__}")
            if key in into:
                raise FormatError(self.path, f"the key {key!r} twice", expected="each once", remedy="save it again")
            into[key] = value

    def storage(self, said: Any) -> _Storage:
        if not (isinstance(said, tuple) and len(said) == 5 and said[0] == "storage" and isinstance(said[1], _Global)):
            raise self.refuse("a storage of another kind")
        _, kind, key, _, numel = said
        name = kind.name.removeprefix("torch.").removesuffix("Storage")
        dtype = "u1" if kind.name == "torch.storage.UntypedStorage" else _STORAGES.get(name)
        if dtype is None:
            raise self.refuse(f"numbers of {kind.name}")
        if not isinstance(key, str) or not _counts((numel,)):
            raise ValueError("a storage without a name or a size")
        return _Storage(dtype, key, numel)

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else f"a call of a {type(function).__name__}"
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are not a tuple")
        if name == "collections.OrderedDict" and not arguments:
            return {}
        if name == "torch.Size" and len(arguments) == 1:
            return tuple(arguments[0])
        if name == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
                raise ValueError("a tensor without a storage")
            if not is_shape(shape) or not _counts((offset, *strides)) or len(shape) != len(strides):
                raise ValueError("a tensor with invalid shape or strides")
            if name.endswith("v3"):
                storage = self.retyped(storage, arguments[6])
            return _Tensor(storage, offset, shape, strides)
        raise self.refuse(name)

    def retyped(self, storage: _Storage, dtype: Any) -> _Storage:
        """An untyped storage's numbers, of the dtype given with the tensor."""
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, _Global) else f"a {type(dtype).__name__}"
        if name not in _DTYPES or storage.dtype != "u1":
            raise self.refuse(f"numbers of {name}")
        size = np.dtype(_DTYPES[name]).itemsize
        if storage.numel % size:
            raise ValueError(f"{storage.numel} bytes of {name}")
        return _Storage(_DTYPES[name], storage.key, storage.numel // size)


def _counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(n) is int and 0 <= n < 2**62 for n in numbers)
