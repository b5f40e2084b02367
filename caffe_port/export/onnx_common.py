"""Functions that the operators of several modules share."""

from __future__ import annotations

from typing import Any

from caffe_port.errors import CaffeError
from caffe_port.export.onnx_graph import Array, Graph, Value

__all__ = ["linear", "numbers", "pads", "refuse"]


def numbers(blob: Any) -> Array:
    """A parameter blob as an array, without a copy if it is on the CPU."""
    array: Array = blob.detach().cpu().numpy()
    return array


def refuse(layer: Any, found: str, expected: str) -> CaffeError:
    """The error for a setting of a layer for which ONNX has no operator."""
    return CaffeError(
        f"{layer.where}: layer {layer.name} ({layer.type})",
        found,
        expected=expected,
        remedy="cut the net before this layer with --outputs BLOB, or use -o NAME.pt2",
    )


def pads(begin: Any, end: Any) -> list[int]:
    return [int(n) for n in (*begin, *end)]


def linear(g: Graph, x: Value, factor: float, term: float = 0.0) -> Value:
    x = x if factor == 1 else g.node("Mul", [x, g.number(factor)], x.shape)
    return x if term == 0 else g.node("Add", [x, g.number(term)], x.shape)
