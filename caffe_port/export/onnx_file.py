"""A net as an ONNX file.

Every layer is written by one function (:mod:`caffe_port.export.onnx_layers`), nothing is traced. Batch statistics and
scales after a layer with weights are folded into these, blobs that depend on no input become constants, Split and
Dropout are omitted. The file's initializers are streamed from the parameters' memory. A file is checked before it is
renamed to its final name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from caffe_port.console import info
from caffe_port.errors import CaffeError
from caffe_port.export import onnx_detection, onnx_layers, onnx_windows  # noqa: F401
from caffe_port.export.inputs import in_steps, takes_regions
from caffe_port.export.onnx_check import check
from caffe_port.export.onnx_graph import SINGLE, Array, Graph, Value, operator_of
from caffe_port.export.onnx_int8 import QUANTIZED, pictures_of, quantize
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.onnx_write import save
from caffe_port.export.parts import (
    WITH_WEIGHTS,
    Exported,
    fixed_batch,
    folded_weights,
    followers,
    needed_nodes,
    new_folder_beside,
    refuse_layers,
    require,
    reset_shapes,
    wanted_outputs,
)
from caffe_port.formats.atomic import check_output
from caffe_port.graph import Node

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.net import Net

__all__ = ["OPSET", "onnx"]

OPSET = 18
"""The default: supported by onnxruntime 1.14, OpenCV 5 and others since 2023."""
_OLDEST = 18


_BY_SHAPE = ("PriorBox",)
"""Layers whose tops depend only on the shapes of their bottoms."""
_PASSED_ON = ("Split", "Dropout", "DropoutChannel")


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
    calibrate: Sequence[str | os.PathLike] | None = None,
) -> Exported:
    """Write a net as an ONNX file.

    Args:
        net: in phase TEST; its outputs must not depend on data layers or losses.
        opset: of the default domain; default: 18.
        dynamic_batch: the first axis of the inputs may have any length.
        dynamic_size: so may height and width, where every layer allows it.
        dtype: "fp32"; "fp16": numbers inside are float16, inputs and outputs float32; "int8": the products are of 8
            bits, by onnxruntime's quantizer, and the graph takes a picture.
        outputs: output blobs instead of the net's; layers that they do not need are omitted.
        fold: fold normalizations into the weights before them.
        overwrite: replace an existing file.
        verify: run the file in onnxruntime, compare with the net, and keep it only if the numbers agree.
        reference: an .npz of another Caffe's numbers to compare with as well (as ``parity`` takes it).
        preprocessing: the graph takes a picture, uint8, and preprocesses it.
        calibrate: for int8, files of pictures such as the net is for.

    Raises:
        CaffeError: a layer that cannot be exported, by name, before anything is written; an unknown blob or dtype;
            onnx or onnxruntime are missing; or the numbers do not agree.
        FileError: the file exists or cannot be written.
    """
    require("onnx")
    if verify:
        require("onnxruntime")
    target = os.fspath(path)
    check_output(target, overwrite=overwrite)
    if dtype not in ("fp32", "fp16", "int8"):
        raise CaffeError("dtype", repr(dtype), expected="fp32, fp16 or int8")
    if (dtype == "int8") != (calibrate is not None):
        found = "no pictures for int8" if dtype == "int8" else f"pictures for {dtype}"
        remedy = "--dtype int8 --calibrate FOLDER"
        raise CaffeError("calibrate", found, expected="pictures with int8 only", remedy=remedy)
    if reference is not None and (preprocessing is not None or dtype == "int8"):
        remedy = "compare without the preprocessing, which changes no weights, and then write the file with it"
        raise CaffeError("reference", "a file that takes pictures", expected="one that takes blobs", remedy=remedy)
    if dtype == "int8":
        require("onnxruntime")
        preprocessing = preprocessing or Preprocessing()
    if (opset or OPSET) < _OLDEST:
        raise CaffeError("opset", str(opset), expected=f"{_OLDEST} or above")
    wanted = wanted_outputs(net, outputs)
    reset_shapes(net)
    nodes = needed_nodes(net, wanted)
    refuse_layers(net, nodes, partial(_known, net), "ONNX export", _ALTERNATIVES)
    if dynamic_batch and (why := fixed_batch(net, nodes)):
        info(f"the batch size is fixed: {why}")
        dynamic_batch = False
    graph = Graph(opset or OPSET, half=dtype == "fp16", dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
    writer = _Writer(net, graph, nodes, wanted, fold=fold, preprocessing=preprocessing)
    with torch.no_grad():
        writer.run()
    result = Exported(target, [v.name for v in writer.inputs], wanted, len(graph.nodes), writer.folded, writer.computed)
    feeds = [] if calibrate is None or preprocessing is None else pictures_of(calibrate, writer.inputs, preprocessing)
    with new_folder_beside(target) as folder:
        written = folder / (f"float-{Path(target).name}" if feeds else Path(target).name)
        save(written, graph, writer.inputs, writer.outputs, _facts(net, result, verify, dtype, reference))
        if verify:
            result.checked = check(written, net, writer, "fp32" if feeds else dtype, reference)
        if feeds:
            result.agreement = quantize(written, folder / Path(target).name, feeds, writer.quantized)
            for file in folder.glob("float-*"):
                file.unlink()
        # The arrays first: a file without them cannot be opened, and gives no clear error.
        for file in sorted(folder.iterdir(), reverse=True):
            file.replace(Path(target).with_name(file.name))
    return result


_ALTERNATIVES = "cut the net before them with --outputs BLOB, or give a plugin's layer a method onnx(graph, *bottoms)"


def _known(net: Net, node: Node, layer: Layer) -> bool:
    return node.type in ("Input", "Parameter", *_BY_SHAPE) or operator_of(layer, net.dialect) is not None


class _Writer:
    """Writes the nodes in order with each layer's operator.

    Attributes:
        inputs, outputs: the graph's, as values. folded, computed: see :class:`Exported`.
        values: the value of each blob's last version, by blob.
        quantized: the names of the operators that compute in 8 bits where the file has them.
        steps: by node, the bottoms of layers whose tops change in steps, with their values.
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
        self.quantized: list[str] = []
        self.steps: dict[int, list[tuple[str, Value]]] = {}
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
                with self.graph.single_precision():
                    picture, self.values[top] = self.preprocessing.write(self.graph, top, shape)
                self.inputs.append(picture)
                continue
            regions = takes_regions(self.net, top)
            value = Value(self.graph.fresh(top), shape, self.graph.half, 0 if regions else None)
            self.inputs.append(value)
            self.values[top] = value

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
            key = self.graph.initializer(f"{name}.value", array)
            self.values[name] = Value(key, tuple(array.shape), key in self.graph.singles)
        return self.values[name]

    def _write(self, i: int, node: Node, layer: Layer) -> None:
        function = operator_of(layer, self.net.dialect)
        if function is None:
            self.graph.needs_fixed_size(layer, "boxes for a map")
        assert function is not None
        more: dict[str, Array] = {}
        absorbed: list[tuple[Node, Layer]] = []
        if self.fold and node.type in WITH_WEIGHTS and len(node.bottoms) == 1:
            absorbed = followers(self.net, self.nodes, i, self.wanted)
            if absorbed:
                more = folded_weights(layer, absorbed)
        before, start = {v.name for v in self.values.values()}, len(self.graph.nodes)
        with self.graph.single_precision(function in SINGLE):
            bottoms = [self._value(b) for b in node.bottoms]
            if node.type not in _PASSED_ON:
                bottoms = [self.graph.typed(b) for b in bottoms]
            if in_steps(layer):
                pairs = zip(node.bottoms, bottoms, strict=True)
                self.steps[node.index] = [(blob, value) for blob, value in pairs if blob not in self.constants]
            tops = function(self.graph, layer, *bottoms, **more)
        tops = tops if isinstance(tops, tuple) else (tops,)
        if node.type in QUANTIZED:
            self.quantized += [made.name for made in self.graph.nodes[start:]]
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


def _facts(net: Net, result: Exported, verify: bool, dtype: str, reference: str | os.PathLike | None) -> dict[str, str]:
    """The file's metadata."""
    facts = {
        "caffe.net": net.definition.net.name,
        "caffe.definition": Path(net.definition.path).name,
        "caffe.dialect": net.dialect.name,
    }
    if result.folded:
        facts["caffe_port.folded"] = "; ".join(f"{layer} into {into}" for layer, into in result.folded.items())
    if verify:
        what = "in float32 " if dtype == "int8" else ""
        others = "" if reference is None else f" and with another Caffe's numbers in {Path(reference).name}"
        facts["caffe_port.checked"] = (
            f"{what}run in onnxruntime and compared with caffe_port's net{others} before the file was kept"
        )
    return facts
