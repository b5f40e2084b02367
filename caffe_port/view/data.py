"""The data of the page: a net's layers and edges, and statistics of the weights and of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.schema.text import to_text
from caffe_port.spec import infer, is_known
from caffe_port.view.numbers import as_url, channels, picks, statistics

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.pycaffe import Net
    from caffe_port.schema import Definition

__all__ = ["Compared", "Run", "add_picture", "net_data", "picture_inputs", "record"]

Tops = list[dict[str, Any]]

_ELSEWHERE = ("name", "type", "bottom", "top", "blobs")
"""Fields of a layer that the page shows in another form."""


@dataclass
class Run:
    """What a forward pass computed: for each layer, by its index, the numbers of its tops right after it ran.

    Attributes:
        source: what it ran on. picture: the input, as a ``data:`` address; "" where it is none.
        size: height and width of the input. fields: by layer what each row and column of its tops depends on.
    """

    source: str
    tops: dict[int, Tops] = field(default_factory=dict)
    picture: str = ""
    size: tuple[int, int] = (0, 0)
    fields: dict[int, Any] = field(default_factory=dict)


@dataclass
class Compared:
    """A net beside a reference: for each layer, by its index, the arrays that show its work.

    Attributes:
        rows: each a mapping with ``array``, ``values``, ``error``, ``rms``, ``bound``, ``outside``, ``verdict``.
        worst: by layer, the position in ``rows`` of the array to judge it by. first: the first layer that is over.
    """

    verdict: str
    rows: dict[int, list[dict[str, Any]]]
    worst: dict[int, int]
    first: int | None = None


def record(net: Net, source: str, most: int) -> Run:
    """Record what each layer computes from now on; of several passes, the last. ``most`` channels are kept."""
    run, shown = Run(source), [node for node in net.graph.nodes if node.shown]
    net.after_forward(lambda number: _look(net, run, shown[number], most))
    return run


def _look(net: Net, run: Run, node: Node, most: int) -> None:
    from caffe_port.pycaffe.blob import shown_name

    arrays = [np.asarray(net.blobs[shown_name(name)].data) for name in node.tops]
    run.tops[node.index] = [{"stats": statistics(array), **channels(array, most)} for array in arrays]


def add_picture(net: Net, run: Run, most: int, *, picture: np.ndarray | None = None) -> None:
    """Add to a run, once it is done, its input and the fields of its layers, if the net has one input for pictures.

    Args:
        picture: the input as it was (height, width, RGB), uint8; by default the blob's own numbers.
    """
    from caffe_port.view.receptive import fields

    for node, _ in net.nodes:
        if not node.shown:
            _look(net, run, node, most)
    found = picture_inputs(net)
    if len(found) != 1:
        return
    data = np.asarray(net.blobs[found[0]].data)
    if not data.size:
        return
    run.size = (data.shape[2], data.shape[3])
    run.picture = as_url(_as_picture(data[0]) if picture is None else picture)
    shapes = [[tuple(net.shapes[name]) for name in (*node.bottoms, *node.tops)] for node, _ in net.nodes]
    for (node, _), one in zip(net.nodes, fields(net.nodes, shapes, found[0], train=net.phase == "TRAIN"), strict=True):
        if one is not None:
            run.fields[node.index] = [_picked(axis, n) for axis, n in zip(one, run.size, strict=True)]


def picture_inputs(net: Net) -> list[str]:
    """The inputs that may be pictures: 1 or 3 channels, more than one pixel."""
    shapes = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    return [name for name, s in shapes.items() if len(s) == 4 and s[1] in (1, 3) and s[2] * s[3] > 1]


def _picked(axis: tuple[np.ndarray, np.ndarray], length: int) -> list[list[int]]:
    """The first and last pixels for the positions that a channel's picture shows; [1, 0] where there are none."""
    at = picks(len(axis[0]))
    return [
        [int(low), int(high)] if low <= high < length else [1, 0]
        for low, high in zip(axis[0][at], axis[1][at], strict=True)
    ]


def _as_picture(item: np.ndarray) -> np.ndarray:
    """An input (1 or 3 channels, height, width; blue, green, red) as a picture from its smallest to its largest."""
    finite = np.nan_to_num(item.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    grey = ((finite - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    return grey[0] if len(grey) == 1 else np.ascontiguousarray(grey[::-1].transpose(1, 2, 0))


def net_data(
    definition: Definition,
    *,
    weights: Mapping[str, Sequence[np.ndarray | None]] | None = None,
    run: Run | None = None,
    compared: Compared | None = None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """Everything that the page shows, as JSON can hold it.

    Args:
        weights: by layer its parameter blobs.
        run: of a forward pass. compared: what a reference says. notes: lines for the page's head.

    Raises:
        CaffeError: the definition's shapes cannot be.
    """
    inferred = infer(definition, check=False)
    hidden = set(definition.inserted)
    number = {i: n for n, i in enumerate(i for i in range(len(inferred.layers)) if i not in hidden)}
    writer: dict[str, int] = {}
    layers: list[dict[str, Any]] = []
    for i, around in enumerate(inferred.layers):
        message = around.message
        sources = [writer.get(name) for name in message.bottom]
        if i in hidden:  # a Split that the definition does not have: its tops are its bottom
            writer.update((top, sources[0]) for top in message.top if sources[0] is not None)
            continue
        writer.update(dict.fromkeys(message.top, number[i]))
        shared = around.spec.shared if around.spec else ()
        count = sum(prod(shape) for name, shape in around.params.items() if name not in shared)
        known = all(map(is_known, (*around.bottoms, *around.tops)))
        layer: dict[str, Any] = {
            **{"name": message.name, "type": message.type, "where": definition.where(i), "text": _text(message)},
            "bottoms": [
                {"blob": name, "shape": _shape(shape), "from": source}
                for name, shape, source in zip(message.bottom, around.bottoms, sources, strict=True)
            ],
            "tops": _tops(around, run.tops.get(i, []) if run else []),
            "params": _params(around, (weights or {}).get(message.name, ())),
            "parameters": count if around.spec and is_known((count,)) else None,
            "macs": around.macs if around.spec and known else None,
        }
        if run and i in run.fields:
            layer["field"] = run.fields[i]
        if compared and i in compared.rows:
            layer |= {"rows": compared.rows[i], "worst": compared.worst[i]}
        layers.append(layer)
    net = definition.net
    return {
        "title": net.name or definition.path,
        **{"file": definition.path, "dialect": definition.dialect.name, "phase": definition.phase},
        "layers": layers,
        "notes": [
            *notes,
            *(f"the shapes of layer type {kind} are not known" for kind in dict.fromkeys(inferred.unknown)),
        ],
        "run": {"source": run.source, "picture": run.picture, "size": run.size} if run else None,
        "verdict": compared.verdict if compared else None,
        "first": number.get(compared.first) if compared and compared.first is not None else None,
    }


def _text(message: Any) -> str:
    """The layer's own parameters as prototxt."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in _ELSEWHERE:
        copy.ClearField(name)
    return to_text(copy).strip()


def _shape(shape: Sequence[Any]) -> list[Any]:
    return [int(n) if is_known((n,)) else "?" for n in shape]


def _tops(around: Any, ran: Tops) -> Tops:
    """The tops by name; where a run gave numbers, with them."""
    tops: Tops = [{"blob": name, "shape": _shape(s)} for name, s in zip(around.message.top, around.tops, strict=False)]
    for top, numbers in zip(tops, ran, strict=False):
        top.update(numbers)
    return tops


def _params(around: Any, blobs: Sequence[np.ndarray | None]) -> list[dict[str, Any]]:
    """The parameter blobs by name, and those that the weights hold beyond them."""
    named = list(around.params.items())
    more = enumerate(blobs[len(named) :], len(named))
    named += [(str(k), tuple(blob.shape)) for k, blob in more if blob is not None]
    params: list[dict[str, Any]] = [{"name": name, "shape": _shape(shape)} for name, shape in named]
    for param, blob in zip(params, blobs, strict=False):
        if blob is not None:
            param["stats"] = statistics(blob)
    return params
