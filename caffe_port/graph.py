"""The immutable graph of a definition: readers of blobs, required gradients, coordinate maps between blobs.

A blob is a name. An in-place layer writes a new value under the name of its bottom; since every layer runs in the order
of the definition, the name always denotes the value for the next reader.

Source: net.cpp (both programs), Init, AppendTop, AppendBottom; crop_layer.cpp (noh) for the alignment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema import Definition

__all__ = [
    "Facts",
    "Graph",
    "Needs",
    "Node",
    "Overwritten",
    "Reads",
    "connect",
    "dependents",
    "memory_of",
    "needs_backward",
    "overwritten",
    "overwritten_besides",
    "path_between",
]


@dataclass(frozen=True)
class Node:
    """One layer at its position.

    Attributes:
        index: its position. message: the LayerParameter. where: "file:line".
        bottoms, tops: blob names. key: its name among the net's modules, unique.
        shown: False for the Input layer that represents ``input:`` fields in the fork, which has no such layer.
    """

    index: int
    message: Any
    where: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    key: str
    shown: bool

    @property
    def name(self) -> str:
        return self.message.name

    @property
    def type(self) -> str:
        return self.message.type


@dataclass(frozen=True)
class Graph:
    """The nodes in order of execution.

    Attributes:
        blobs: every blob's name in the order of Caffe's ``net.blobs``.
        inputs: the tops of Input layers. outputs: the blobs that no layer reads, in Caffe's order.
    """

    nodes: tuple[Node, ...]
    blobs: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    forced: bool = False
    """Whether every layer runs backward (``force_backward``)."""


def connect(definition: Definition, losses: Collection[str] = ()) -> Graph:
    """Connect the layers of a definition.

    Args:
        losses: the types that get an unnamed top when the definition names none; it is not an output, but a loss.

    Raises:
        DefinitionError: a bottom that no earlier layer computes, a top of two layers, a wrong number of
            propagate_down.
    """
    makers: dict[str, int] = {}
    unread: set[str] = set()
    nodes: list[Node] = []
    keys: set[str] = set()
    inputs: list[str] = []
    for i, message in enumerate(definition.net.layer):
        where = definition.where(i)
        if message.type in losses and not message.top:
            message = _with_top(message, f"(automatic {i})")
        for bottom in message.bottom:
            if bottom not in makers:
                near = nearest(bottom, makers)
                raise DefinitionError(
                    f"{where}: layer {message.name}",
                    f"bottom {bottom!r}, which no earlier layer computes",
                    remedy=f"near: {near}" if near else "",
                )
            unread.discard(bottom)
        for j, top in enumerate(message.top):
            in_place = j < len(message.bottom) and message.bottom[j] == top
            if top in makers and not in_place:
                other = nodes[makers[top]] if makers[top] < i else None
                raise DefinitionError(
                    f"{where}: layer {message.name}",
                    f"top {top!r} a second time" + (f", first by layer {other.name} ({other.where})" if other else ""),
                    remedy="give one of them another name",
                )
            makers.setdefault(top, i)
            if message is definition.net.layer[i]:
                unread.add(top)
        if len(message.propagate_down) not in (0, len(message.bottom)):
            raise DefinitionError(
                f"{where}: layer {message.name}",
                f"{len(message.propagate_down)} propagate_down for {len(message.bottom)} bottoms",
                expected="none, or one for each bottom",
            )
        key = message.name or message.type
        if key in keys:
            key = f"{key}#{i}"
        keys.add(key)
        shown = i not in definition.synthetic or definition.dialect.inputs_are_layers
        nodes.append(Node(i, message, where, tuple(message.bottom), tuple(message.top), key, shown))
        if message.type == "Input":
            inputs += message.top
    forced = bool(definition.net.force_backward)
    return Graph(tuple(nodes), tuple(makers), tuple(inputs), tuple(sorted(unread)), forced)


def _with_top(message: Any, top: str) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.top.append(top)
    return copy


@dataclass(frozen=True)
class Facts:
    """A layer's facts from which the required gradients follow.

    Attributes:
        learns: for each parameter blob whether its learning rate is not zero.
        loss_weights: for each top. fixed: bottoms that never get a gradient.
    """

    learns: Sequence[bool]
    loss_weights: Sequence[float]
    fixed: Sequence[int]


@dataclass(frozen=True)
class Needs:
    """What a backward pass computes: for each node whether it runs, for which bottoms, for which parameters."""

    layer: tuple[bool, ...]
    bottoms: tuple[tuple[bool, ...], ...]
    params: tuple[tuple[bool, ...], ...]


def needs_backward(graph: Graph, facts: Sequence[Facts], *, force: bool) -> Needs:
    """Which layers run backward and what they compute there (net.cpp, Init).

    A layer runs if it has learned parameters or a bottom needs its gradient, and if it contributes to a loss; with
    ``force_backward`` all of them run.
    """
    blob_needs = dict.fromkeys(graph.blobs, False)
    layer: list[bool] = []
    bottoms: list[list[bool]] = []
    for node, fact in zip(graph.nodes, facts, strict=True):
        given = list(node.message.propagate_down)
        bottoms.append(given or [blob_needs[b] for b in node.bottoms])
        layer.append(any(blob_needs[b] for b in node.bottoms) or any(fact.learns))
        if layer[-1]:
            blob_needs.update(dict.fromkeys(node.tops, True))
    under_loss: set[str] = set()
    skipped: set[str] = set()
    for node, fact in zip(reversed(graph.nodes), reversed(facts), strict=True):
        i = node.index
        contributes = any(fact.loss_weights) or any(t in under_loss for t in node.tops)
        if layer[i] and all(t in skipped for t in node.tops):
            layer[i], bottoms[i] = False, [False] * len(node.bottoms)
        if contributes:
            under_loss.update(node.bottoms)
        else:
            layer[i], bottoms[i] = False, [False] * len(node.bottoms)
        skipped.update(b for b, need in zip(node.bottoms, bottoms[i], strict=True) if not need)
    params = [list(fact.learns) for fact in facts]
    if force:
        layer = [True] * len(layer)
        bottoms = [[True] * len(b) for b in bottoms]
        params = [[True] * len(p) for p in params]
    for node, fact in zip(graph.nodes, facts, strict=True):
        for f in fact.fixed:
            if f < len(node.bottoms):
                bottoms[node.index][f] = False
    return Needs(tuple(layer), tuple(map(tuple, bottoms)), tuple(map(tuple, params)))


@dataclass(frozen=True)
class Reads:
    """The blobs that a layer's backward pass reads in Caffe: the attributes of ``caffe_port.layers.base.Layer``."""

    bottoms: Sequence[int] = ()
    tops: Sequence[int] = ()
    signs: bool = False
    keeps_signs: bool = False
    shares_memory: bool = False
    corrupts_diffs: bool = False
    clears: bool = False
    """Its backward pass sets its bottoms' data to 0."""


@dataclass(frozen=True)
class Overwritten:
    """A layer whose gradient in Caffe is not its derivative, because blobs that it reads were overwritten.

    Attributes:
        bottoms, tops: for each blob that it reads, by position, the node and top that last wrote there: (index, name).
        by: the overwriting nodes; the layer itself where top and bottom share a diff that it overwrites.
    """

    bottoms: dict[int, tuple[int, str]]
    tops: dict[int, tuple[int, str]]
    by: tuple[int, ...]


def memory_of(graph: Graph, shares: Sequence[bool]) -> dict[str, str]:
    """For each blob the one whose memory it uses in Caffe: itself, or the layer's first bottom.

    Args:
        shares: for each layer whether its tops use its first bottom's memory.
    """
    memory: dict[str, str] = {}
    for node, shared in zip(graph.nodes, shares, strict=True):
        for top in node.tops:
            memory.setdefault(top, memory[node.bottoms[0]] if shared else top)
    return memory


def overwritten_besides(graph: Graph, shares: Sequence[bool]) -> dict[int, tuple[str, ...]]:
    """Further blobs that an in-place layer overwrites: the earlier ones in its first top's memory, by its index."""
    memory, made, found = memory_of(graph, shares), set[str](), dict[int, tuple[str, ...]]()
    for node in graph.nodes:
        if node.tops and node.bottoms[:1] == node.tops[:1]:
            top = node.tops[0]
            others = tuple(b for b in graph.blobs if b in made and b != top and memory[b] == memory[top])
            if others:
                found[node.index] = others
        made.update(node.tops)
    return found


def overwritten(graph: Graph, reads: Sequence[Reads]) -> dict[int, Overwritten]:
    """The layers whose gradient in Caffe differs from the derivative, by index.

    Caffe reads a blob's current value backward. In-place layers have changed it, also through the top of a Split,
    Flatten or Reshape, which shares its bottom's memory.
    """
    memory = memory_of(graph, [fact.shares_memory for fact in reads])
    writes: dict[str, list[tuple[int, str]]] = {}
    for node in graph.nodes:
        for j, top in enumerate(node.tops):
            if node.bottoms[j : j + 1] == (top,):
                writes.setdefault(memory[top], []).append((node.index, top))
    for node, fact in zip(graph.nodes, reads, strict=True):
        if fact.clears and graph.forced:  # in the backward pass, after everything that forward writes
            for bottom in node.bottoms:
                writes.setdefault(memory[bottom], []).append((node.index, bottom))
    found: dict[int, Overwritten] = {}
    for node, fact in zip(graph.nodes, reads, strict=True):
        i, by = node.index, set[int]()

        def later(blob: str, since: int) -> list[tuple[int, str]]:
            return [write for write in writes.get(memory[blob], ()) if write[0] >= since]

        bottoms = {k: later(node.bottoms[k], i) for k in fact.bottoms if k < len(node.bottoms)}
        tops = {k: later(node.tops[k], i + 1) for k in fact.tops if k < len(node.tops)}
        for writers in bottoms.values():
            if not (fact.signs and all(reads[j].keeps_signs for j, _ in writers)):
                by.update(j for j, _ in writers)
        for writers in tops.values():
            by.update(j for j, _ in writers)
        if fact.corrupts_diffs and node.bottoms[:1] == node.tops[:1]:
            by.add(i)
        if by:
            last = [{k: writers[-1] for k, writers in side.items() if writers} for side in (bottoms, tops)]
            found[i] = Overwritten(last[0], last[1], tuple(sorted(by)))
    return found


def dependents(graph: Graph, inputs: Collection[str]) -> list[int]:
    """The nodes whose values depend on these input blobs, without the nodes that supply the inputs."""
    reached, found = set(inputs), []
    for node in graph.nodes:
        if reached.intersection(node.bottoms):
            reached.update(node.tops)
            found.append(node.index)
    return found


def path_between(graph: Graph, node: Node) -> tuple[list[Node], list[Node]]:
    """The layers from the common ancestor of ``node``'s bottoms down to each bottom, last layer first.

    Follows first bottoms, past in-place layers, as crop_layer.cpp (noh) does.

    Raises:
        DefinitionError: the bottoms have no common ancestor.
    """
    maker: dict[str, Node] = {}
    for n in graph.nodes[: node.index]:
        for top in n.tops:
            maker.setdefault(top, n)

    def ancestors(blob: str) -> list[str]:
        path = [blob]
        while path[-1] in maker and maker[path[-1]].bottoms:
            path.append(maker[path[-1]].bottoms[0])
        return path

    first, second = ancestors(node.bottoms[0]), ancestors(node.bottoms[1])
    common = next((b for b in second if b in first), None)
    if common is None:
        raise DefinitionError(f"{node.where}: layer {node.name}", "its bottoms have no common ancestor")
    return [maker[b] for b in first[: first.index(common)]], [maker[b] for b in second[: second.index(common)]]
