"""An ONNX graph under construction: values with names and shapes, nodes, and initializers without copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer

__all__ = ["OPERATORS", "Graph", "Operator", "Value", "operator", "operator_of"]

Array = Any  # np.ndarray, whose generic form differs between the supported numpy versions


@dataclass
class Value:
    """A tensor of the graph.

    Attributes:
        name: its name in the file. shape: as the definition gives it; the first axis may be dynamic in the file.
        single: float32 in a half-precision graph, too.
        rows: the axis whose length depends on the numbers (objects found), if one does.
    """

    name: str
    shape: tuple[int, ...]
    single: bool = False
    rows: int | None = None


Operator = Callable[..., Any]
"""(graph, layer, *bottoms) to the top, or to a tuple of tops; each a :class:`Value`."""

OPERATORS: dict[str, dict[str, Operator]] = {}
"""By layer type and dialect, "" for all dialects."""


SINGLE: set[Operator] = set()
"""Those that compute in float32 in a half-precision graph, too."""


def operator(*types: str, dialect: str = "", single: bool = False) -> Callable[[Operator], Operator]:
    """Register the function that writes a layer type into a graph; ``single``: in float32 at least."""

    def register(function: Operator) -> Operator:
        for type_name in types:
            OPERATORS.setdefault(type_name, {})[dialect] = function
        if single:
            SINGLE.add(function)
        return function

    return register


def operator_of(layer: Layer, dialect: Dialect) -> Operator | None:
    """The function that writes a layer: its method ``onnx(graph, *bottoms)`` (a plugin's), or the registered one."""
    own = getattr(type(layer), "onnx", None)
    if own is not None:
        return lambda graph, layer, *bottoms: own(layer, graph, *bottoms)
    of_type = OPERATORS.get(layer.type, {})
    return next((of_type[name] for name in (*dialect.lineage, "") if name in of_type), None)


class Graph:
    """The graph to which the operators write.

    Args:
        opset: of the default domain. half: numbers are float16 inside the graph.
        dynamic_batch: the first axis may have any length. dynamic_size: so may height and width.
    """

    def __init__(
        self, opset: int, *, half: bool = False, dynamic_batch: bool = True, dynamic_size: bool = False
    ) -> None:
        self.opset, self.half = opset, half
        self.dynamic_batch, self.dynamic_size = dynamic_batch, dynamic_size
        self.nodes: list[Any] = []
        self.initializers: dict[str, Array] = {}
        self.singles: set[str] = set()
        """Initializers that stay float32 in a half-precision graph."""
        self.layer = ""
        self._single = False
        self._casts: dict[tuple[str, bool], Value] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._used: set[str] = set()

    @contextmanager
    def single_precision(self, wanted: bool = True) -> Iterator[None]:
        """What is added within computes in float32."""
        before, self._single = self._single, wanted and self.half
        try:
            yield
        finally:
            self._single = before

    @property
    def single(self) -> bool:
        """Whether what is added now computes in float32 in a half-precision graph."""
        return self._single

    def typed(self, x: Value) -> Value:
        """A value in the precision of what is being added."""
        if not self.half or x.single == self._single:
            return x
        if (x.name, self._single) not in self._casts:
            self._casts[x.name, self._single] = self.cast(x, "float")
        return self._casts[x.name, self._single]

    def fresh(self, wanted: str) -> str:
        """``wanted``, with a number appended if a value or node already has that name."""
        name, n = wanted, 1
        while name in self._used:
            n += 1
            name = f"{wanted}_{n}"
        self._used.add(name)
        return name

    def initializer(self, name: str, array: Array) -> str:
        """A named array of the file; float32 becomes float16 in a half-precision graph when it is written."""
        name = self.fresh(name)
        self.initializers[name] = array
        if self._single:
            self.singles.add(name)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small array, each once in the file."""
        array = np.asarray(value, dtype)
        if self.half and not self._single and array.dtype == np.float32:
            array = np.clip(array, -65504, 65504)
        key = (self._single and array.dtype == np.float32, array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"{self.layer}/constant", array)
        return self._constants[key]

    def number(self, value: float) -> str:
        """A scalar in the graph's precision."""
        return self.constant(value, np.float32)

    def node(
        self, kind: str, inputs: Sequence[Any], shape: Sequence[int] = (), *, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add an operator.

        Args:
            inputs: values, names of initializers, or "" for an omitted one.
            shape: of the first output. outputs: their number, all of that shape.

        Returns:
            The output, or a tuple of them.
        """
        from onnx import helper

        names = [self.fresh(f"{self.layer}/{kind}") for _ in range(outputs)]
        node = helper.make_node(
            kind,
            [i.name if isinstance(i, Value) else i for i in inputs],
            names,
            self.fresh(f"{self.layer}:{kind}"),
            **attributes,
        )
        self.nodes.append(node)
        shape = tuple(int(n) for n in shape)
        varying = [v for v in inputs if isinstance(v, Value) and v.rows is not None]
        rows = next((v.rows for v in varying if v.rows == 0 or len(v.shape) == len(shape)), None)
        values = tuple(Value(name, shape, self._single, rows) for name in names)
        return values if outputs > 1 else values[0]

    def rename(self, value: Value, name: str) -> Value:
        """Give a node's output its final name."""
        name = self.fresh(name)
        for node in reversed(self.nodes):
            for field in (node.output, node.input):
                for i, other in enumerate(field):
                    if other == value.name:
                        field[i] = name
            if name in node.output:
                break
        return replace(value, name=name)

    # -- shared by operators -------------------------------------------------------------------------------------------

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same values in another shape, whose first axis may have any length if it is unchanged."""
        shape = tuple(int(n) for n in shape)
        if shape == x.shape:
            return x
        wanted = list(shape)
        if shape and x.shape and shape[0] == x.shape[0]:
            wanted[0] = 0
        elif shape and x.shape and shape[0] % x.shape[0] == 0:
            wanted[0] = -1  # the batch, followed by other axes
        elif shape and x.shape and x.shape[0] % shape[0] == 0 and prod(shape) == prod(x.shape):
            wanted[0] = -1
        return self.node("Reshape", [x, self.constant(wanted)], shape)

    def cast(self, x: Value, to: str) -> Value:
        """As another type: "float" is the graph's precision."""
        from onnx import TensorProto

        half = self.half and not self._single
        kind = {"float": "FLOAT16" if half else "FLOAT", "int64": "INT64", "bool": "BOOL", "float32": "FLOAT"}
        kind["double"] = "DOUBLE"
        return self.node("Cast", [x], x.shape, to=getattr(TensorProto, kind[to]))

    def affine(self, x: Value, scale: Array | None, shift: Array | None, axis: int = 1) -> Value:
        """x * scale + shift along an axis."""
        behind = (1,) * (len(x.shape) - 1 - axis)
        for kind, array in (("Mul", scale), ("Add", shift)):
            if array is not None:
                name = self.initializer(
                    f"{self.layer}/{kind.lower()}", np.ascontiguousarray(array).reshape(-1, *behind)
                )
                x = self.node(kind, [x, name], x.shape)
        return x

    def needs_fixed_size(self, layer: Any, why: str) -> None:
        """Raise for a layer whose operators depend on height and width if these are dynamic."""
        if self.dynamic_size:
            raise CaffeError(
                f"{layer.where}: layer {layer.name} ({layer.type})",
                f"{why}, which depends on height and width",
                expected="a fixed size",
                remedy="export without --dynamic-size, or cut the net before this layer with --outputs BLOB",
            )
