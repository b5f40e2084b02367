"""What the exporters share: the part of a net that is exported, its batch, what is folded into weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.errors import CaffeError, FileError, nearest
from caffe_port.export.check import Agreement, Checked
from caffe_port.export.inputs import PROPOSAL
from caffe_port.graph import Node

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.net import Net

__all__ = [
    "Exported",
    "Nodes",
    "Scaled",
    "fixed_batch",
    "folded_weights",
    "followers",
    "needed_nodes",
    "new_folder_beside",
    "refuse_layers",
    "require",
    "reset_shapes",
    "title",
    "wanted_outputs",
]

Nodes = Sequence[tuple[Node, "Layer"]]

WITH_WEIGHTS = ("Convolution", "Deconvolution", "InnerProduct")
"""Layers into whose weights others are folded."""
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
        path: the file. inputs, outputs: their names. nodes: the number of operators, or of modules and steps.
        folded: layers folded into another's weights, with that one's name.
        computed: layers whose tops depend on no input and are constants. checked: None without a check.
        agreement: of an 8-bit file with the float one.
    """

    path: str
    inputs: list[str]
    outputs: list[str]
    nodes: int
    folded: dict[str, str] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    checked: Checked | None = None
    agreement: Agreement | None = None


def title(net: Net) -> str:
    """The net in an error."""
    return f"net {net.definition.net.name or net.definition.path}"


@contextmanager
def new_folder_beside(target: str) -> Iterator[Path]:
    """A folder next to the target that is removed with its contents."""
    try:
        with TemporaryDirectory(dir=Path(target).parent, prefix=f".{Path(target).name}.") as folder:
            yield Path(folder)
    except OSError as error:
        raise FileError(target, f"cannot be written: {error.strerror or error}") from error


def reset_shapes(net: Net) -> None:
    """Reset every blob to the definition's shape, independent of the last run."""
    given = {name: net.shapes[name] for name in net.graph.inputs}
    for node, _ in net.nodes:
        shapes = [tuple(shape.dim) for shape in node.message.input_param.shape] if node.type == "Input" else []
        given.update(zip(node.tops, shapes * (len(node.tops) if len(shapes) == 1 else 1), strict=False))
    net.reshape_for(given)


def require(package: str, remedy: str = "pip install 'caffe_port[onnx]'") -> None:
    """Raise CaffeError if a package is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise CaffeError("export", f"{package} is not installed", remedy=remedy)


def fixed_batch(net: Net, nodes: Nodes) -> str:
    """Why the first axis of the inputs cannot have another length; empty if it can."""
    for node, layer in nodes:
        if node.type in _RECURRENT:
            return f"layer {node.name} is unrolled over its steps"
        if layer.type == PROPOSAL:
            return f"layer {node.name} takes one picture"
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


def wanted_outputs(net: Net, outputs: Sequence[str] | None) -> list[str]:
    """The blobs to give: the net's outputs, or those named.

    Raises:
        CaffeError: an unknown blob, or none.
    """
    for name in outputs or ():
        if name not in net.graph.blobs:
            near = nearest(name, net.graph.blobs)
            remedy = f"near: {near}" if near else "caffe-port info lists the blobs"
            raise CaffeError("outputs", f"no blob {name!r} in the net", remedy=remedy)
    found = list(net.graph.outputs if outputs is None else dict.fromkeys(outputs))
    if not found:
        raise CaffeError(title(net), "no outputs", expected="at least one output blob")
    return found


def needed_nodes(net: Net, outputs: Collection[str]) -> list[tuple[Node, Layer]]:
    """The nodes that the outputs depend on, in their order."""
    needed, found = set(outputs), []
    for node, layer in reversed(net.nodes):
        if needed.intersection(node.tops):
            needed.update(node.bottoms)
            found.append((node, layer))
    return found[::-1]


def refuse_layers(net: Net, nodes: Nodes, known: Callable[[Node, Layer], bool], what: str, remedy: str) -> None:
    """Raise for the layers that an exporter cannot write, naming all of them, before anything is written.

    Args:
        known: whether it can. what: the exporter. remedy: the way on for layers other than data layers.
    """
    unknown = [(f"{node.name} ({node.type}, {node.where})", node) for node, layer in nodes if not known(node, layer)]
    if not unknown:
        return
    names = [name for name, _ in unknown]
    raise CaffeError(
        title(net),
        f"{len(names)} layers that {what} does not support: {', '.join(names[:5])}"
        + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        expected="layers for deployment",
        remedy="give the deploy definition, whose inputs are Input layers"
        if any(not node.bottoms for _, node in unknown)
        else remedy,
    )


def followers(net: Net, nodes: Nodes, i: int, wanted: Collection[str]) -> list[tuple[Node, Layer]]:
    """The layers after node ``i``, one with weights, that only scale and shift its channels, each the only reader of
    the previous one."""
    node, layer = nodes[i][0], nodes[i][1]
    found: list[tuple[Node, Layer]] = []
    top = node.tops[0]
    start = i + 1
    while True:
        readers = [(j, n, lay) for j, (n, lay) in enumerate(nodes[start:], start) if top in n.bottoms]
        if not readers:
            return found
        j, reader, other = readers[0]
        in_place = reader.tops == (top,)
        if (len(readers) > 1 and not in_place) or (top in wanted and not in_place):
            return found
        if reader.bottoms != (top,) or len(reader.tops) != 1 or net.loss_weights.get(top):
            return found
        if layer.type == "InnerProduct" and layer.from_axis != 1:
            return found
        if layer.type != "InnerProduct" and getattr(layer, "channel_axis", 1) != 1:
            return found
        if other.channel_affine() is None:
            return found
        found.append((reader, other))
        top, start = reader.tops[0], j + 1


class Scaled:
    """Weights times a factor of each channel, computed in double precision and rounded once, piece by piece.

    Args:
        weight: C-contiguous. factor: (groups, channels). rows: how often a group's channels follow each other.

    Attributes:
        shape, dtype, nbytes: of the product, float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, weight: Any, factor: Any, rows: int = 1) -> None:
        groups, channels = factor.shape
        self.shape, self.nbytes = weight.shape, weight.size * 4
        self._weight, self._factor = weight.reshape(groups, rows, channels, -1), factor[:, None, :, None]

    def pieces(self) -> Iterator[Any]:
        """Its numbers in their order, as arrays that a processor's cache holds; each is overwritten by the next."""
        groups, rows, channels, rest = self._weight.shape
        many = min(max(_PIECE // (channels * rest), 1), rows)
        few = channels if many > 1 else min(max(_PIECE // rest, 1), channels)
        wide, narrow = np.empty((many, few, rest)), np.empty((many, few, rest), np.float32)
        for group, i, j in product(range(groups), range(0, rows, many), range(0, channels, few)):
            weight = self._weight[group, i : i + many, j : j + few]
            length, height, _ = weight.shape
            made, rounded = wide[:length, :height], narrow[:length, :height]
            np.multiply(weight, self._factor[group, :, j : j + few], out=made)
            rounded[...] = made
            yield rounded

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        whole = np.concatenate([piece.ravel().copy() for piece in self.pieces()]).reshape(self.shape)
        return whole if dtype is None else whole.astype(dtype)


_PIECE = 1 << 16
"""Numbers."""


def folded_weights(layer: Any, absorbed: Nodes) -> dict[str, Any]:
    """The weights and the bias with the following layers folded in, in double precision and rounded once."""
    weight = np.ascontiguousarray(layer.weight.detach().cpu().numpy())
    count = layer.num_output
    scale = np.ones(count)
    bias = np.zeros(count) if layer.bias is None else layer.bias.detach().cpu().double().numpy()
    for _, other in absorbed:
        affine = other.channel_affine()
        assert affine is not None
        a, b = (t.detach().cpu().double().numpy() for t in affine)
        scale, bias = scale * a, bias * a + b
    if layer.type == "InnerProduct" and layer.transpose:
        weight = np.ascontiguousarray(weight.T)
    groups = layer.group if layer.type == "Deconvolution" else 1
    rows = weight.shape[0] // groups if layer.type == "Deconvolution" else 1
    return {"weight": Scaled(weight, scale.reshape(groups, -1), rows), "bias": bias.astype(np.float32)}
