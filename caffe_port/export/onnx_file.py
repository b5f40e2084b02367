"""A net as an ONNX file.

Every layer is written by one function (:mod:`caffe_port.export.onnx_layers`), nothing is traced. Batch statistics and
scales after a layer with weights are folded into these, blobs that depend on no input become constants, Split and
Dropout are omitted. The file's initializers are streamed from the parameters' memory. A file is checked before it is
renamed to its final name.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.console import info
from caffe_port.errors import CaffeError, FileError, nearest
from caffe_port.export import onnx_detection, onnx_layers, onnx_windows  # noqa: F401
from caffe_port.export.onnx_check import Checked, check
from caffe_port.export.onnx_graph import Array, Graph, Value, operator_of
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.onnx_write import save
from caffe_port.formats.atomic import check_output
from caffe_port.graph import Node

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.net import Net

__all__ = ["OPSET", "Exported", "onnx"]

OPSET = 18
"""The default: supported by onnxruntime 1.14, OpenCV 5 and others since 2023."""
_OLDEST = 18

_WITH_WEIGHTS = ("Convolution", "Deconvolution", "InnerProduct")
_BY_SHAPE = ("PriorBox",)
"""Layers whose tops depend only on the shapes of their bottoms."""
_PASSED_ON = ("Split", "Dropout", "DropoutChannel")
_RECURRENT = ("LSTM", "RNN", "LSTMUnit")
_ALONG = {
    "Slice": "along",
    "Concat": "along",
    "Tile": "along",
    "Reduction": "from_axis",
    "Crop": "from_axis",
    "InnerProduct": "from_axis",
    "Softmax": "over",
    "Flatten": "from_axis",
}


@dataclass
class Exported:
    """The result of an export.

    Attributes:
        path: the file. inputs, outputs: their names. nodes: the number of operators.
        folded: layers folded into another's weights, with that one's name.
        computed: layers whose tops depend on no input and are constants. checked: None without a check.
    """

    path: str
    inputs: list[str]
    outputs: list[str]
    nodes: int
    folded: dict[str, str] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    checked: Checked | None = None


def onnx(
    net: Net,
    path: str | os.PathLike,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    dtype: str = "fp32",
    outputs: Sequence[str] | None = None,
    fold: bool = True,
    overwrite: bool = False,
    verify: bool = True,
    reference: str | os.PathLike | None = None,
    preprocessing: Preprocessing | None = None,
) -> Exported:
    """Write a net as an ONNX file.

    Args:
        net: in phase TEST; its outputs must not depend on data layers or losses.
        opset: of the default domain; default: 18.
        dynamic_batch: the first axis of the inputs may have any length.
        dynamic_size: so may height and width, where every layer allows it.
        dtype: "fp32", or "fp16": numbers inside are float16, inputs and outputs float32.
        outputs: output blobs instead of the net's; layers that they do not need are omitted.
        fold: fold normalizations into the weights before them.
        overwrite: replace an existing file.
        verify: run the file in onnxruntime, compare with the net, and keep it only if the numbers agree.
        reference: an .npz of another Caffe's numbers to compare with as well (as ``parity`` takes it).
        preprocessing: the graph takes a picture, uint8, and preprocesses it.

    Raises:
        CaffeError: a layer that cannot be exported, by name, before anything is written; an unknown blob or dtype;
            onnx or onnxruntime are missing; or the numbers do not agree.
        FileError: the file exists or cannot be written.
    """
    _require("onnx")
    if verify:
        _require("onnxruntime")
    target = os.fspath(path)
    check_output(target, overwrite=overwrite)
    if dtype not in ("fp32", "fp16"):
        raise CaffeError("dtype", repr(dtype), expected="fp32 or fp16")
    if (opset or OPSET) < _OLDEST:
        raise CaffeError("opset", str(opset), expected=f"{_OLDEST} or above")
    wanted = _wanted(net, outputs)
    if not wanted:
        where = f"net {net.definition.net.name or net.definition.path}"
        raise CaffeError(where, "no outputs", expected="at least one output blob")
    _at_definition(net)
    nodes = _needed(net, wanted)
    _refuse(net, nodes)
    if dynamic_batch and (why := _fixed_batch(net, nodes)):
        info(f"the batch size is fixed: {why}")
        dynamic_batch = False
    graph = Graph(opset or OPSET, half=dtype == "fp16", dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
    writer = _Writer(net, graph, nodes, wanted, fold=fold, preprocessing=preprocessing)
    with torch.no_grad():
        writer.run()
    result = Exported(target, [v.name for v in writer.inputs], wanted, len(graph.nodes), writer.folded, writer.computed)
    with _folder_beside(target) as folder:
        written = folder / Path(target).name
        save(written, graph, writer.inputs, writer.outputs, _facts(net, result, verify))
        if verify:
            result.checked = check(written, net, writer, dtype, reference)
        # The arrays first: a file without them cannot be opened, and gives no clear error.
        for file in sorted(folder.iterdir(), reverse=True):
            file.replace(Path(target).with_name(file.name))
    return result


@contextmanager
def _folder_beside(target: str) -> Iterator[Path]:
    """A folder next to the target that is removed with its contents."""
    try:
        with TemporaryDirectory(dir=Path(target).parent, prefix=f".{Path(target).name}.") as folder:
            yield Path(folder)
    except OSError as error:
        raise FileError(target, f"cannot be written: {error.strerror or error}") from error


def _at_definition(net: Net) -> None:
    """Reset every blob to the definition's shape, independent of the last run."""
    given = {name: net.shapes[name] for name in net.graph.inputs}
    for node, _ in net.nodes:
        shapes = [tuple(shape.dim) for shape in node.message.input_param.shape] if node.type == "Input" else []
        given.update(zip(node.tops, shapes * (len(node.tops) if len(shapes) == 1 else 1), strict=False))
    net.reshape_for(given)


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise CaffeError("export", f"{package} is not installed", remedy="pip install 'caffe_port[onnx]'")


def _fixed_batch(net: Net, nodes: Sequence[tuple[Node, Layer]]) -> str:
    """Why the first axis of the inputs cannot have another length; empty if it can."""
    for node, layer in nodes:
        if node.type in _RECURRENT:
            return f"layer {node.name} is unrolled over its steps"
        if node.type in _ALONG and getattr(layer, _ALONG[node.type]) == 0:
            return f"layer {node.name} works along the first axis"
    before = dict(net.shapes)
    try:
        net.reshape_for({n: (net.shapes[n][0] + 1, *net.shapes[n][1:]) for n in net.graph.inputs if net.shapes[n]})
    except CaffeError as error:
        return str(error)
    finally:
        net.shapes.update(before)
        net._shaped_for = None
    return ""


def _wanted(net: Net, outputs: Sequence[str] | None) -> list[str]:
    if outputs is None:
        return list(net.graph.outputs)
    for name in outputs:
        if name not in net.graph.blobs:
            near = nearest(name, net.graph.blobs)
            raise CaffeError("outputs", f"no blob {name!r} in the net", remedy=f"near: {near}" if near else "")
    return list(dict.fromkeys(outputs))


def _needed(net: Net, outputs: Collection[str]) -> list[tuple[Node, Layer]]:
    """The nodes that the outputs depend on, in their order."""
    needed, found = set(outputs), []
    for node, layer in reversed(net.nodes):
        if needed.intersection(node.tops):
            needed.update(node.bottoms)
            found.append((node, layer))
    return found[::-1]


def _refuse(net: Net, nodes: Sequence[tuple[Node, Layer]]) -> None:
    """Raise for layers without an operator, naming all of them, before anything is written."""
    unknown = [
        f"{node.name} ({node.type}, {node.where})"
        for node, layer in nodes
        if node.type not in ("Input", "Parameter", *_BY_SHAPE) and operator_of(layer, net.dialect) is None
    ]
    if unknown:
        data = any(not node.bottoms for node, _ in nodes if f"{node.name} ({node.type}, {node.where})" in unknown)
        raise CaffeError(
            f"net {net.definition.net.name or net.definition.path}",
            f"{len(unknown)} layers that ONNX export does not support: {', '.join(unknown[:5])}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            expected="layers for deployment",
            remedy="give the deploy definition, whose inputs are Input layers"
            if data
            else "cut the net before them with --outputs BLOB, or give a plugin's layer a method onnx(graph, *bottoms)",
        )


class _Writer:
    """Writes the nodes in order with each layer's operator.

    Attributes:
        inputs, outputs: the graph's, as values. folded, computed: see :class:`Exported`.
        values: the value of each blob's last version, by blob.
    """

    def __init__(
        self,
        net: Net,
        graph: Graph,
        nodes: list[tuple[Node, Layer]],
        wanted: list[str],
        *,
        fold: bool,
        preprocessing: Preprocessing | None,
    ) -> None:
        self.net, self.graph, self.nodes, self.wanted = net, graph, nodes, wanted
        self.fold, self.preprocessing = fold, preprocessing
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.folded: dict[str, str] = {}
        self.computed: list[str] = []
        self._versions = {b: sum(b in node.tops for node, _ in nodes) for b in net.graph.blobs}

    def run(self) -> None:
        for node, _ in self.nodes:
            if node.type == "Input":
                self._input(node)
        for i, (node, layer) in enumerate(self.nodes):
            self.graph.layer = node.name
            if node.type == "Input":
                continue
            if node.name in self.folded and all(top in self.values for top in node.tops):
                continue
            by_shape = node.type in _BY_SHAPE and not self.graph.dynamic_size
            if by_shape or (all(b in self.constants for b in node.bottoms) and (node.bottoms or self._known(layer))):
                self._compute(node, layer)
            else:
                self._write(i, node, layer)
        for name in self.wanted:
            self.outputs.append(self._as_output(name))

    def _input(self, node: Node) -> None:
        for top in node.tops:
            if top not in self.net.graph.inputs or top in self.values:
                continue
            shape = self.net.shapes[top]
            if self.preprocessing is not None and len(shape) == 4 and not self.inputs:
                self.graph.layer = top
                picture, value = self.preprocessing.write(self.graph, top, shape)
                self.inputs.append(picture)
                self.values[top] = self.graph.cast(value, "float") if self.graph.half else value
                continue
            value = Value(self.graph.fresh(top), shape)
            self.inputs.append(value)
            self.graph.layer = top
            self.values[top] = self.graph.cast(value, "float") if self.graph.half else value

    @staticmethod
    def _known(layer: Any) -> bool:
        return layer.type == "Parameter"

    def _compute(self, node: Node, layer: Layer) -> None:
        """Blobs that depend on no input, computed by the layer; they become initializers if other layers read them."""
        bottoms = (self.constants[b] if b in self.constants else torch.zeros(self.net.shapes[b]) for b in node.bottoms)
        tops = layer(*bottoms)
        for name, top in zip(node.tops, tops if isinstance(tops, tuple) else (tops,), strict=True):
            self.constants[name] = self._legacy_tensor(top)
            self.values.pop(name, None)
        self.computed.append(node.name)

    def _legacy_tensor(self, top: torch.Tensor) -> torch.Tensor:
        short = self.net.dialect.legacy_shapes and top.dim() < 4
        return top.reshape(*top.shape, *(1,) * (4 - top.dim())) if short else top

    def _value(self, name: str) -> Value:
        if name not in self.values:
            array = self.constants[name].detach().cpu().numpy()
            self.values[name] = Value(self.graph.initializer(f"{name}.value", array), tuple(array.shape))
        return self.values[name]

    def _write(self, i: int, node: Node, layer: Layer) -> None:
        function = operator_of(layer, self.net.dialect)
        assert function is not None
        bottoms = [self._value(b) for b in node.bottoms]
        more: dict[str, Array] = {}
        absorbed: list[tuple[Node, Layer]] = []
        if self.fold and node.type in _WITH_WEIGHTS and len(node.bottoms) == 1:
            absorbed = self._foldable(i, node, layer)
            if absorbed:
                more = _folded_weights(layer, absorbed)
        before = {v.name for v in self.values.values()}
        tops = function(self.graph, layer, *bottoms, **more)
        tops = tops if isinstance(tops, tuple) else (tops,)
        last = absorbed[-1][0] if absorbed else node
        for other, _ in absorbed:
            self.folded[other.name] = node.name
        for name, top in zip(last.tops, tops, strict=True):
            self.constants.pop(name, None)
            self.values[name] = self._named(name, self._legacy(top), last, before)
        for other, _ in absorbed[:-1]:
            self.values.setdefault(other.tops[0], self.values[last.tops[0]])

    def _legacy(self, top: Value) -> Value:
        """A layer's result with the axes of its blob in this dialect."""
        missing = 4 - len(top.shape) if self.net.dialect.legacy_shapes else 0
        if missing <= 0:
            return top
        axes = list(range(len(top.shape), 4))
        return self.graph.node("Unsqueeze", [top, self.graph.constant(axes)], (*top.shape, *(1,) * missing))

    def _named(self, name: str, top: Value, node: Node, before: set[str]) -> Value:
        """The value under its blob's name; an earlier version of an in-place blob gets its layer's name appended."""
        if top.name in before or top.name in self.graph.initializers or top in self.inputs:
            return top  # passed on: the value of another blob
        later = any(
            name in other.tops and other.index > node.index
            for other, _ in self.nodes
            if other.type not in _PASSED_ON and other.name not in self.folded
        )
        wanted = f"{name}@{node.name}" if later else name
        return self.graph.rename(top, f"{wanted}.half" if self.graph.half else wanted)

    def _foldable(self, i: int, node: Node, layer: Layer) -> list[tuple[Node, Layer]]:
        """The following layers that only scale and shift its channels, each the only reader of the previous one."""
        found: list[tuple[Node, Layer]] = []
        top = node.tops[0]
        start = i + 1
        while True:
            readers = [(j, n, lay) for j, (n, lay) in enumerate(self.nodes[start:], start) if top in n.bottoms]
            if not readers:
                return found
            j, reader, other = readers[0]
            in_place = reader.tops == (top,)
            if (len(readers) > 1 and not in_place) or (top in self.wanted and not in_place):
                return found
            if reader.bottoms != (top,) or len(reader.tops) != 1 or self.net.loss_weights.get(top):
                return found
            if layer.type == "InnerProduct" and layer.from_axis != 1:
                return found
            if layer.type != "InnerProduct" and layer.channel_axis != 1:
                return found
            if other.channel_affine() is None:
                return found
            found.append((reader, other))
            top, start = reader.tops[0], j + 1

    def _as_output(self, name: str) -> Value:
        value = self._value(name)
        self.graph.layer = name
        final = name
        taken = value.name == name and value not in self.inputs and name not in self.graph.initializers
        if taken and not self.graph.half:
            return value
        if self.graph.half:
            made = self.graph.cast(value, "float32")
        else:
            made = self.graph.node("Identity", [value], value.shape)
        if any(v.name == final for v in self.inputs):
            raise CaffeError(f"output {name}", "an input of the net", expected="a blob that a layer computes")
        return self.graph.rename(made, final)


def _folded_weights(layer: Any, absorbed: Sequence[tuple[Node, Any]]) -> dict[str, Array]:
    """The weights and the bias with the following layers folded in, in double precision and rounded once."""
    weight = layer.weight.detach().cpu().double().numpy()
    count = layer.num_output
    scale = np.ones(count)
    bias = np.zeros(count) if layer.bias is None else layer.bias.detach().cpu().double().numpy()
    for _, other in absorbed:
        a, b = (t.detach().cpu().double().numpy() for t in other.channel_affine())
        scale, bias = scale * a, bias * a + b
    if layer.type == "InnerProduct":
        matrix = weight.T if layer.transpose else weight
        weight = np.ascontiguousarray(matrix * scale[:, None])
    elif layer.type == "Deconvolution":
        by_group = weight.reshape(layer.group, -1, *weight.shape[1:])
        weight = (by_group * scale.reshape(layer.group, 1, -1, *(1,) * len(layer.kernel))).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def _facts(net: Net, result: Exported, verify: bool) -> dict[str, str]:
    """The file's metadata."""
    facts = {
        "caffe.net": net.definition.net.name,
        "caffe.definition": Path(net.definition.path).name,
        "caffe.dialect": net.dialect.name,
    }
    if result.folded:
        facts["caffe_port.folded"] = "; ".join(f"{layer} into {into}" for layer, into in result.folded.items())
    if verify:
        facts["caffe_port.checked"] = "run in onnxruntime and compared with caffe_port's net before the file was kept"
    return facts
