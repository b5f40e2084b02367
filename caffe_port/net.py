"""Net: a definition as an ``nn.Module``.

``Net`` builds the layers of a definition, fills or loads their parameters, and runs them on tensors. What pycaffe adds
(blobs, diffs, a backward pass of its own) is in ``caffe_port.pycaffe``.

Source: net.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import fast, layers, random
from caffe_port.dialects import Dialect
from caffe_port.errors import DefinitionError, WeightsError
from caffe_port.execution.inputs import check_inputs, known_blobs, named_inputs
from caffe_port.formats import write_net
from caffe_port.graph import Facts, Node, connect, needs_backward, path_between
from caffe_port.layers.base import Layer, Named, Shape, unknown_types
from caffe_port.layers.blobs import legacy
from caffe_port.layers.python import Python
from caffe_port.log import info
from caffe_port.schema import Definition, read_net
from caffe_port.schema.messages import TEST, TRAIN
from caffe_port.schema.plugins import python_layers_allowed
from caffe_port.spec.coords import compose, identity_map, inverse
from caffe_port.spec.infer import blob_shape
from caffe_port.weight_loading import Account, load

__all__ = ["PHASES", "Net"]

PHASES = {TRAIN: "TRAIN", TEST: "TEST"}
"""A phase's name by its number in the schema."""


class Net(Named):
    """A net on tensors.

    ``net(data=x)`` gives a dict from each output blob's name to its tensor; with gradients enabled it is differentiable
    like any module, without them it takes a faster way to the same numbers (:mod:`caffe_port.fast`).

    Args:
        source: a prototxt (path or text), a NetParameter, or a Definition.
        weights: a file or several to load, in order, as ``caffe train --weights a,b`` does.
        phase: "TRAIN" or "TEST".
        dialect: "bvlc", "noh", or None to tell from the definition.
        level, stages: the state that ``include`` and ``exclude`` rules ask for.
        proto: a fork's own caffe.proto whose fields are to be known too.
        allow_python: let layers of type Python run the code that they name; None asks
            :func:`caffe_port.schema.plugins.python_layers_allowed`.

    Raises:
        CaffeError: any fault of the definition or the weights, see :mod:`caffe_port.errors`.
    """

    def __init__(
        self,
        source: str | Path | Definition | Any,
        weights: str | Path | Iterable[str | Path] | None = None,
        phase: str = "TEST",
        *,
        dialect: str | Dialect | None = None,
        level: int = 0,
        stages: Iterable[str] = (),
        proto: str | Path | None = None,
        allow_python: bool | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        if not isinstance(source, Definition):
            source = read_net(source, phase=phase, level=level, stages=tuple(stages), dialect=dialect, proto=proto)
        self.definition = source
        self.dialect, self.phase = source.dialect, phase
        losses = {t for t in layers.REGISTRY if (cls := layers.layer_class(t, source.dialect)) and cls.loss}
        self.graph = connect(source, losses)
        files = [] if weights is None else [weights] if isinstance(weights, (str, Path)) else list(weights)
        # Caffe draws every parameter, also those that a file then replaces; who has asked for a seed wants the stream
        # to be where Caffe's would be.
        fill = not files or (phase == "TRAIN" and random.default_stream().seeded)
        self.nodes: list[tuple[Node, Layer]] = []
        self.ignored: list[str] = []
        """Parameter blocks of other layer types, which Caffe ignores and so do we."""
        self.shapes: dict[str, Shape] = {}
        self._allows_python = python_layers_allowed() if allow_python is None else allow_python
        self._unknown = unknown_types((node.message for node in self.graph.nodes), self.dialect)
        for node in self.graph.nodes:
            self._build(node)
            if fill:
                self._fill(self.nodes[-1][1])
        for field in self.ignored:
            info(f"{field} is another layer type's, ignored as in Caffe")
        self._share()
        self.loss_weights = {
            top: weight
            for node, layer in self.nodes
            for top, weight in zip(node.tops, self._weights(node, layer), strict=True)
        }
        facts = [Facts(self._learns(n, lay), self._weights(n, lay), lay.labels) for n, lay in self.nodes]
        self.needs = needs_backward(self.graph, facts, force=source.net.force_backward)
        for (_, layer), needed in zip(self.nodes, self.needs.params, strict=True):
            for blob, need in zip(layer.caffe_blobs, needed, strict=True):
                if isinstance(blob, nn.Parameter):
                    blob.requires_grad_(need)
        self._frozen_until = [
            next((j for j in range(i, len(self.nodes)) if self.needs.layer[j]), len(self.nodes)) - 1
            for i in range(len(self.nodes))
        ]
        self.train(phase == "TRAIN")
        self._plan: fast.Plan | None = None
        self._low_memory: fast.Plan | None = None
        self._shaped_for: dict[str, Shape] | None = None
        self.accounts = [self._load_first(f, not fill) if i == 0 else self.load(f) for i, f in enumerate(files)]

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self, node: Node) -> None:
        layer = layers.create(node.message, self.dialect, node.where, self._unknown)
        # A layer without a phase of its own has the net's (net.cpp, Init).
        layer.phase = PHASES[node.message.phase] if node.message.HasField("phase") else self.phase
        if isinstance(layer, Python):
            layer.allowed = self._allows_python
        bottoms = [self.shapes[b] for b in node.bottoms]
        layer.train(self.phase == "TRAIN").setup(*bottoms)
        self.ignored += [f"{node.where}: {path} of layer {node.name} ({node.type})" for path in layer.check_fields()]
        if getattr(layer, "aligns", False):
            layer.align(self._alignment(node))
        self.nodes.append((node, layer))
        self._set_shapes(node, layer)
        _register(self, node.key, layer)

    def _set_shapes(self, node: Node, layer: Layer) -> None:
        shapes = layer.reshape(*(self.shapes[b] for b in node.bottoms))
        for top, shape in zip(node.tops, shapes, strict=True):
            self.shapes[top] = blob_shape(shape, self.dialect)

    def _alignment(self, node: Node) -> tuple[int, int]:
        """Where in its first bottom a Crop of noh starts: both bottoms' ways from the blob they come from."""
        maps = []
        for path in path_between(self.graph, node):
            m = identity_map()
            for other in path:
                layer = self.nodes[other.index][1]
                step = layer.coord_map()
                if step is None:
                    raise DefinitionError(
                        f"{node.where}: layer {node.name}",
                        f"layer {other.name} ({other.type}) on its way has no alignment",
                    )
                m = compose(m, step)
            maps.append(m)
        crop = compose(maps[1], inverse(maps[0]))
        if any(scale != 1 or shift > 0 or shift.denominator != 1 for scale, shift in crop):
            raise DefinitionError(
                f"{node.where}: layer {node.name}",
                f"its bottoms lie over one another as {[(float(a), float(b)) for a, b in crop]}",
                expected="scale 1 and whole offsets, not negative",
            )
        return int(-crop[0][1]), int(-crop[1][1])

    def _weights(self, node: Node, layer: Layer) -> list[float]:
        given = list(node.message.loss_weight)
        n = len(node.tops)
        if given and len(given) != n:
            raise layer.error(f"{len(given)} loss_weight for {n} tops", expected="none, or one for each top")
        return given or [float(layer.loss and i == 0) for i in range(n)]

    def _learns(self, node: Node, layer: Layer) -> list[bool]:
        specs = node.message.param
        if len(specs) > len(layer.blob_names):
            raise layer.error(f"{len(specs)} param for {len(layer.blob_names)} blobs", expected="no more than blobs")
        return [
            isinstance(blob, nn.Parameter) and (specs[i].lr_mult != 0 if i < len(specs) else True)
            for i, blob in enumerate(layer.caffe_blobs)
        ]

    def _share(self) -> None:
        """Make parameters of one name one tensor (net.cpp, AppendParam)."""
        owners: dict[str, tuple[Layer, str]] = {}
        for node, layer in self.nodes:
            for spec, blob in zip(node.message.param, layer.blob_names, strict=False):
                if not spec.name:
                    continue
                if spec.name not in owners:
                    owners[spec.name] = layer, blob
                    continue
                owner, theirs = owners[spec.name]
                mine, first = getattr(layer, blob), getattr(owner, theirs)
                permissive = spec.share_mode == spec.PERMISSIVE
                if mine.shape != first.shape and not (permissive and mine.numel() == first.numel()):
                    raise layer.shape_error(
                        f"{blob} of shape {tuple(mine.shape)} shared as {spec.name!r}",
                        expected=f"the shape of {owner.name}'s {theirs}, {tuple(first.shape)}",
                        remedy="share_mode: PERMISSIVE asks for equal counts only",
                    )
                layer.share(blob, first)

    def _fill(self, layer: Layer, names: Iterable[str] | None = None) -> None:
        """Draw a layer's parameters from their fillers: those named, or all, with what Caffe draws and drops."""
        for name in layer.blob_names if names is None else names:
            blob = getattr(layer, name)
            if layer.fillers[name] is None:
                if name not in layer.filled:
                    blob.data.zero_()
            else:
                blob.data.copy_(self._drawn(layer, name).view(blob.shape))
        for name in layer.drawn_again if names is None else ():
            self._drawn(layer, name)

    def _drawn(self, layer: Layer, name: str) -> Tensor:
        shape = tuple(getattr(layer, name).shape)
        numbers = random.fill(
            layer.fillers[name],
            legacy(shape) if self.dialect.legacy_shapes else shape,
            random.default_stream(),
            legacy=self.dialect.legacy_shapes,
            fused=self.dialect.fused_draws,
            where=f"{layer.where}: layer {layer.name}",
        )
        return torch.from_numpy(numbers)

    # -- weights -------------------------------------------------------------------------------------------------------

    def load(self, path: str | Path, *, strict: bool = False, ignore_mismatched: bool = False) -> Account:
        """Load weights by layer name, of any format that ``caffe_port.formats`` reads.

        Args:
            strict: refuse a file that lacks blobs of the net, or has layers that the net lacks.
            ignore_mismatched: skip blobs of other shapes instead of refusing the file.

        Returns:
            What was copied, what the file lacks, what the net lacks, what does not fit.

        Raises:
            WeightsError: what Caffe refuses, too: another number of blobs, or other shapes.
        """
        return load(self, path, strict=strict, ignore_mismatched=ignore_mismatched)

    def _load_first(self, path: str | Path, fill: bool) -> Account:
        """Load into a net just built: its parameters become views of the file, and what the file lacks is drawn."""
        account = load(self, path, adopt=True)
        if fill:
            copied = set(account.copied)
            for _, layer in self.nodes:
                self._fill(
                    layer, [n for n in layer.fillers if n not in layer.shared and f"{layer.name}.{n}" not in copied]
                )
        return account

    def share_parameters(self, other: Net) -> None:
        """Let every layer that ``other`` has too, by name, use its parameters (net.cpp, ShareTrainedLayersWith).

        Raises:
            WeightsError: a layer of the same name has another number of blobs or other shapes.
        """
        theirs = {layer.name: layer for _, layer in reversed(other.nodes)}
        for _, layer in self.nodes:
            source = theirs.get(layer.name)
            if source is None or source is layer:
                continue
            mine, shared = ([tuple(b.shape) for b in one.caffe_blobs] for one in (layer, source))
            if mine != shared:
                raise WeightsError(
                    f"layer {layer.name}", f"blobs {shared} to share", expected=f"{mine} ({layer.where})"
                )
            for name, blob in zip(layer.blob_names, source.caffe_blobs, strict=True):
                setattr(layer, name, blob)

    def save(self, path: str | Path, *, diffs: bool = False, durable: bool = False, hdf5: bool | None = None) -> None:
        """Write the parameters as a file that real Caffe loads: HDF5 if the name ends in .h5, else a .caffemodel.

        The form is the definition's: ``layers`` with legacy dims where the prototxt says ``layers``, as the fork reads.
        An existing file is replaced once the new one is whole.

        Args:
            diffs: keep the parameters' diffs, too. durable: return when the disk has it.
            hdf5: the form, whatever the name.
        """
        seen = set()
        if hdf5 is None:
            hdf5 = str(path).endswith(".h5")

        def array(blob: Tensor) -> np.ndarray | None:
            if hdf5 and id(blob) in seen:
                return None  # shared with an earlier layer, which holds it
            seen.add(id(blob))
            return blob.detach().cpu().numpy()

        blobs = [[array(b) for b in layer.caffe_blobs] for _, layer in self.nodes]
        kept = [[layer.diff(n).cpu().numpy() for n in layer.blob_names] for _, layer in self.nodes] if diffs else None
        form = "h5" if hdf5 else "caffemodel"
        write_net(path, self.definition, blobs, diffs=kept, format=form, overwrite=True, durable=durable)

    # -- running -------------------------------------------------------------------------------------------------------

    def reshape_for(self, inputs: Mapping[str, Shape]) -> None:
        """Work out every blob's shape for these input shapes; layers refuse what cannot be."""
        if self._shaped_for == inputs:
            return
        for node, layer in self.nodes:
            if node.type == "Input":
                self.shapes.update((t, tuple(inputs[t])) for t in node.tops if t in inputs)
            else:
                self._set_shapes(node, layer)
        self._shaped_for = dict(inputs)

    def forward(
        self, *given: Tensor | Mapping[str, Tensor], blobs: Iterable[str] | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Run on tensors.

        Args:
            given: a tensor for each input blob in the definition's order, or one mapping of them by name.
            blobs: blobs to return beside the outputs; of a blob that layers change in place, the last version.
            inputs: a tensor for each input blob, by name, with the net's dtype, device and number of axes.

        Returns:
            Every output blob's tensor by name.

        Raises:
            CaffeError: an input is missing, unknown, or of another dtype, device or rank; a blob is unknown.
            ShapeError: a shape that cannot be.
        """
        where = f"net {self.definition.net.name or self.definition.path}"
        tensors = named_inputs(self.graph.inputs, given, inputs, where)
        ranks = {name: len(self.shapes[name]) if self.shapes[name] != (0,) else None for name in self.graph.inputs}
        check_inputs(tensors, ranks, self._like(), where)
        keep = [*dict.fromkeys([*self.graph.outputs, *known_blobs(blobs or (), self.shapes, where)])]
        self.reshape_for({k: tuple(v.shape) for k, v in tensors.items()})
        if not torch.is_grad_enabled() and not self.training:
            return self.plan.run(tensors, keep=keep)
        values = dict(tensors)
        for node, layer in self.nodes:
            if node.type != "Input":
                self.run_layer(node, layer, values)
        return {name: values[name] for name in keep}

    def losses(self, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass: the weighted sum of the losses, to call ``backward()`` on with gradients, and every output blob.

        Layers that no gradient reaches run without autograd and keep nothing; ``propagate_down`` and frozen layers are
        as Caffe sees them. Parameter gradients add up in ``grad``; those of a layer that overwrites its diffs start
        anew.
        """
        if self._low_memory is None:
            self._low_memory = fast.Plan(self, low_memory=True)
        plan, keep = self._low_memory, {*self.graph.outputs, *(t for t, w in self.loss_weights.items() if w)}
        self.reshape_for({k: tuple(v.shape) for k, v in inputs.items()})
        blobs, total, i = dict(inputs), torch.zeros((), device=self._like().device), 0
        prepare, learns = plan.start(), torch.is_grad_enabled()
        while i < len(self.nodes):
            node, layer = self.nodes[i]
            if learns and self.needs.layer[i]:
                if layer.overwrites_diffs:
                    for p in layer.parameters():
                        p.grad = None
                wanted = zip(node.bottoms, self.needs.bottoms[i], strict=True)
                blobs.update({b: blobs[b].detach() for b, need in wanted if not need})
                done = plan.learn(blobs, i)
            else:
                with torch.no_grad():
                    done = plan.advance(
                        blobs, i, self._frozen_until[i] if learns else len(self.nodes) - 1, prepare=prepare
                    )
            for name in node.tops:
                if self.loss_weights[name]:
                    total = total + blobs[name].sum() * self.loss_weights[name]
            plan.free(blobs, i, done, keep)
            i = done + 1
        return total, {name: blobs[name].detach() for name in self.graph.outputs}

    def _like(self) -> Tensor:
        """A tensor of the net's device and dtype."""
        return next(self.parameters(), self.get_buffer("_anchor"))

    def run_layer(self, node: Node, layer: Layer, blobs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run one layer from and into ``blobs``; returns its tops."""
        tops = layer(*(blobs[b] for b in node.bottoms))
        tops = tuple(self.blob_view(t) for t in (tops if isinstance(tops, tuple) else (tops,)))
        blobs.update(zip(node.tops, tops, strict=True))
        return tops

    def blob_view(self, t: Tensor) -> Tensor:
        """What a layer gave, in the shape that its blob has in this dialect."""
        return t.view(blob_shape(tuple(t.shape), self.dialect)) if self.dialect.legacy_shapes and t.dim() < 4 else t

    @property
    def plan(self) -> fast.Plan:
        """The way that forward takes when nobody asks for gradients."""
        if self._plan is None:
            self._plan = fast.Plan(self)
        return self._plan

    def extra_repr(self) -> str:
        return f"{self.definition.net.name}, dialect={self.dialect.name}, phase={self.phase}"


def _register(net: nn.Module, key: str, layer: Layer) -> None:
    """Make the layer a module of the net; a name with dots is a path, as torch has it."""
    *path, last = key.split(".")
    for part in path:
        net = net._modules.setdefault(part, Named())  # type: ignore[assignment]
    if last in net._modules:
        layer._modules.update(net._modules[last]._modules)  # type: ignore[union-attr]
    net._modules[last] = layer
