"""A net's definition as a drawing: boxes for layers, octagons for blobs.

The drawing is text in Graphviz's language; its program ``dot`` converts it to a picture. pydot is not needed; if it is
installed ``get_pydot_graph`` returns its graph.

Source: python/caffe/draw.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.formats.atomic import atomic_write
from caffe_port.schema import upgrade_net
from caffe_port.schema.messages import PoolingParameter

__all__ = [
    "BLOB_STYLE",
    "LAYER_STYLE_DEFAULT",
    "NEURON_LAYER_STYLE",
    "Graph",
    "choose_color_by_layertype",
    "draw_net",
    "draw_net_to_file",
    "get_edge_label",
    "get_layer_label",
    "get_layer_lr_mult",
    "get_pooling_types_dict",
    "get_pydot_graph",
]

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}

_COLORS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
_LEARNING = ("Convolution", "Deconvolution", "InnerProduct")
_TEXT = ("raw", "gv")


@dataclass
class Graph:
    """A directed graph with attributes.

    Attributes:
        nodes: attributes by name. edges: source, target, attributes.
    """

    name: str
    rankdir: str
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def to_string(self) -> str:
        """The graph in Graphviz's language."""
        lines = [f"digraph {_quoted(self.name)} {{", f"rankdir={self.rankdir};"]
        lines += [f"{_quoted(name)} [{_attributes(attributes)}];" for name, attributes in self.nodes.items()]
        lines += [f"{_quoted(a)} -> {_quoted(b)} [{_attributes(attributes)}];" for a, b, attributes in self.edges]
        return "\n".join([*lines, "}", ""])

    def create(self, prog: str = "dot", format: str = "png") -> bytes:
        """The graph as a picture; as text for the format "raw".

        Raises:
            CaffeError: Graphviz's program is not installed, or does not support the format.
        """
        text = self.to_string().encode()
        if format in _TEXT:
            return text
        if shutil.which(prog) is None:
            remedy = "install Graphviz, or write to a name that ends in .raw"
            raise CaffeError("draw", f"no program {prog!r}", expected="Graphviz", remedy=remedy)
        done = subprocess.run([prog, f"-T{format}"], input=text, capture_output=True, check=False)
        if done.returncode:
            raise CaffeError("draw", f"{prog}: {' '.join(done.stderr.decode(errors='replace').split())}")
        return done.stdout


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _attributes(attributes: dict[str, str]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in attributes.items())


def get_pooling_types_dict() -> dict[int, str]:
    """The names of pooling methods by number."""
    return {value.number: value.name for value in PoolingParameter.PoolMethod.DESCRIPTOR.values}


def get_edge_label(layer: Any) -> str:
    """The label of the arrows out of a layer: the batch size or the number of outputs."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    return str(layer.inner_product_param.num_output) if layer.type == "InnerProduct" else ""


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """A trained layer's learning rate multipliers, of weight and bias.

    Raises:
        DefinitionError: the layer is of another type, or has more than two.
    """
    if layer.type not in _LEARNING or len(layer.param) > 2:
        found = f"type {layer.type} with {len(layer.param)} param"
        raise DefinitionError(f"layer {layer.name}", found, expected=f"{', '.join(_LEARNING)} with two or fewer")
    first, second = [*(p.lr_mult for p in layer.param), 1.0, 1.0][:2]
    return first, second


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """The text of a layer's box: name, type, kernel, and on request its learning rate multipliers."""
    # A drawing from top to bottom has space at the sides, others below.
    separator = " " if rankdir in ("TB", "BT") else r"\n"
    kind = layer.type
    if kind == "Pooling":
        kind += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
    lines = [re.sub(r"([{}|<>])", r"\\\1", layer.name), f"({kind})"]
    if layer.type == "Pooling":
        p = layer.pooling_param
        lines.append(_kernel(p.kernel_size, p.stride, p.pad, separator))
    elif layer.type in ("Convolution", "Deconvolution"):
        p = layer.convolution_param
        lines.append(_kernel([*p.kernel_size, 1][0], [*p.stride, 1][0], [*p.pad, 0][0], separator))
    if display_lrm and layer.type in _LEARNING:
        factors = get_layer_lr_mult(layer)
        if any(factors):
            lines.append("lr mult: {:.1f}, {:.1f}".format(*factors))
    return separator.join(lines)


def _kernel(size: int, stride: int, pad: int, separator: str) -> str:
    return separator.join([f"kernel size: {size}", f"stride: {stride}", f"pad: {pad}"])


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a layer's box."""
    return _COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def _drawn(layer: Any, phase: int | None) -> bool:
    if phase is None:
        return True
    if layer.include and layer.exclude:
        raise DefinitionError(f"layer {layer.name}", "include and exclude", expected="one of them")
    if layer.include:
        return any(rule.phase == phase for rule in layer.include)
    return not any(rule.phase == phase for rule in layer.exclude)


def _graph(net: Any, rankdir: str, label_edges: bool, phase: int | None, display_lrm: bool) -> Graph:
    graph = Graph(net.name or "Net", rankdir)
    for layer in upgrade_net(net).net.layer:
        if not _drawn(layer, phase):
            continue
        name = f"{layer.name}_{layer.type}"
        in_place = len(layer.bottom) == 1 and list(layer.bottom) == list(layer.top)
        color = {} if in_place else {"fillcolor": choose_color_by_layertype(layer.type)}
        style = NEURON_LAYER_STYLE if in_place else LAYER_STYLE_DEFAULT
        graph.nodes[name] = {"label": get_layer_label(layer, rankdir, display_lrm), **style, **color}
        for bottom in layer.bottom:
            graph.nodes[f"{bottom}_blob"] = {"label": bottom, **BLOB_STYLE}
            graph.edges.append((f"{bottom}_blob", name, {"label": ""}))
        for top in layer.top:
            graph.nodes[f"{top}_blob"] = {"label": top, **BLOB_STYLE}
            graph.edges.append((name, f"{top}_blob", {"label": get_edge_label(layer) if label_edges else ""}))
    return graph


def get_pydot_graph(
    caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Any:
    """A NetParameter's drawing: pydot's graph if pydot is installed, else a :class:`Graph`.

    Args:
        rankdir: "LR", "TB" or "BT", the direction from input to output.
        phase: draw only the layers of TRAIN or TEST. display_lrm: show learning rate multipliers.

    Raises:
        DefinitionError: a layer has both include and exclude.
    """
    graph = _graph(caffe_net, rankdir, label_edges, phase, display_lrm)
    try:
        import pydot
    except ImportError:
        return graph
    return pydot.graph_from_dot_data(graph.to_string())[0]


def draw_net(
    caffe_net: Any, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """A NetParameter's drawing as a picture file's bytes.

    Args:
        ext: the format by Graphviz's name; "raw" is the text, for which Graphviz is not needed.
        rankdir, phase, display_lrm: see :func:`get_pydot_graph`.

    Raises:
        CaffeError: Graphviz is not installed, or does not know the format.
    """
    return _graph(caffe_net, rankdir, True, phase, display_lrm).create(format=ext)


def draw_net_to_file(
    caffe_net: Any, filename: str | Path, rankdir: str = "LR", phase: int | None = None, display_lrm: bool = False
) -> None:
    """Draw a NetParameter to a file, in the format of its extension; see :func:`draw_net`."""
    picture = draw_net(caffe_net, rankdir, Path(filename).suffix.removeprefix("."), phase, display_lrm)
    with atomic_write(filename, overwrite=True) as file:
        file.write(picture)
