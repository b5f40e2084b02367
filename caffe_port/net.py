"""Net: a definition as an ``nn.Module``.

``Net`` builds the layers of a definition, fills or loads their parameters, and runs them on tensors. pycaffe's
additions (blobs, diffs, its backward pass) are in ``caffe_port.pycaffe``.

Source: net.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import is_
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import layers, random
from caffe_port.console import info
from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, WeightsError
from caffe_port.execution.caffe_gradients import CaffeGradients, check_choice
from caffe_port.execution.executor import Executor, Mode
from caffe_port.execution.facts import crop_offsets, learned_blobs, loss_weights_of, share_parameters
from caffe_port.execution.in_parts import rows_at_once, run_in_parts
from caffe_port.execution.inputs import check_inputs, known_blobs, named_inputs, refuse_untraceable
from caffe_port.execution.precision import call_in_bf16, check_precision
from caffe_port.formats import write_net
from caffe_port.graph import Facts, Needs, Node, connect, needs_backward
from caffe_port.layers.base import Layer, Named, Shape, unknown_types
from caffe_port.layers.blobs import legacy
from caffe_port.layers.capabilities import RunsCode, WritesFiles
from caffe_port.layers.foreign import Foreign, Place, check_savable, found_at, register
from caffe_port.layers.functions import recorded, traced
from caffe_port.schema import Definition, read_net
from caffe_port.schema.messages import PHASES
from caffe_port.schema.plugins import python_layers_allowed, writes_allowed
from caffe_port.spec.infer import blob_shape
from caffe_port.spec.no_effect import without_effect
from caffe_port.weight_loading import Account, load

__all__ = ["Net"]


class Net(Named):
    """A net on tensors.

    ``net(data=x)`` gives a dict from each output blob's name to its tensor; with gradients enabled it is differentiable
    like any module, without gradients it runs faster with the same results (:mod:`caffe_port.execution`). A layer may
    be hooked, parametrized or replaced by any module, as in torch; it then runs as a module, the others stay fast.

    Args:
        source: a prototxt (path or text), a NetParameter, or a Definition.
        weights: a file or several to load, in order, as ``caffe train --weights a,b`` does.
        phase: "TRAIN" or "TEST".
        dialect: "bvlc", "noh", or None to detect it from the definition.
        level, stages: the state for ``include`` and ``exclude`` rules.
        proto: a fork's caffe.proto, whose fields are accepted too.
        allow_python: allow layers of type Python to run the code that they name; None: see
            :func:`caffe_port.schema.plugins.python_layers_allowed`.
        allow_writes: allow layers such as HDF5Output to write the files that they name; None: see ``writes_allowed``
            there.
        mmap: use pages of the (first) weight file as parameters, which takes no time and memory until values are used.
            The file must then remain unchanged while the net exists: writing to it changes the net's values, and
            truncating it ends the process (SIGBUS). Without it the net owns its memory.
        gradients: where an in-place layer overwrites values that another's backward pass reads, "caffe" gives Caffe's
            gradient, "true" the derivative. None: Caffe's in pycaffe's ``backward()`` and in the
            solver, derivatives where the net is used as a module.
        precision: "fp32"; "bf16": multiply in bfloat16 in inference (docs/speed.md), which has eight binary digits.

    Raises:
        CaffeError: any error in the definition or the weights, see :mod:`caffe_port.errors`.
    """

    OPTIONS: ClassVar = ("allow_python", "allow_writes", "mmap", "gradients", "precision")
    """Keyword arguments that pycaffe's Net passes on."""

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
        allow_writes: bool | None = None,
        mmap: bool = False,
        gradients: str | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.gradients, self.precision = check_choice(gradients), check_precision(precision)
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        if not isinstance(source, Definition):
            source = read_net(source, phase=phase, level=level, stages=tuple(stages), dialect=dialect, proto=proto)
        self.definition = source
        self.dialect, self.phase = source.dialect, phase
        losses = {t for t in layers.REGISTRY if (cls := layers.layer_class(t, source.dialect)) and cls.loss}
        self.graph = connect(source, losses)
        files = [] if weights is None else [weights] if isinstance(weights, (str, Path)) else list(weights)
        # Caffe draws every parameter, also those that a file then replaces; with a seed the stream must
        # continue where Caffe's does.
        fill = not files or (phase == "TRAIN" and random.default_stream().seeded)
        self._executor: Executor | None = None
        self._shaped_for: dict[str, Shape] | None = None
        self._paths = [node.key.split(".") for node in self.graph.nodes]
        self._keys = [path[0] for path in self._paths] if all(len(path) == 1 for path in self._paths) else []
        built: list[tuple[Node, Layer]] = []
        self.ignored: list[str] = []
        """Parameter blocks of other layer types, which are ignored, as in Caffe."""
        self.shapes: dict[str, Shape] = {}
        self._allows_python = python_layers_allowed() if allow_python is None else allow_python
        self._allows_writes = writes_allowed() if allow_writes is None else allow_writes
        self._unknown = unknown_types((node.message for node in self.graph.nodes), self.dialect)
        for node in self.graph.nodes:
            built.append((node, self._build(node, built)))
            if fill:
                self._fill(built[-1][1])
        for line in without_effect(source, self.ignored):
            info(line)
        share_parameters(built)
        self.loss_weights = {
            top: weight
            for node, layer in built
            for top, weight in zip(node.tops, loss_weights_of(node, layer), strict=True)
        }
        self._places = [
            Place(node.name, node.type, node.where, lay.dialect, lay.n_bottoms, lay.n_tops, lay.labels, type(lay))
            for node, lay in built
        ]
        for (_, layer), needed in zip(self.nodes, self.needs.params, strict=True):
            for blob, need in zip(layer.caffe_blobs, needed, strict=True):
                if isinstance(blob, nn.Parameter):
                    blob.requires_grad_(need)
        self.train(phase == "TRAIN")
        self.accounts = [self._load_first(f, not fill, mmap) if i == 0 else self.load(f) for i, f in enumerate(files)]

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self, node: Node, built: Sequence[tuple[Node, Layer]]) -> Layer:
        layer = layers.create(node.message, self.dialect, node.where, self._unknown)
        # A layer without a phase has the net's (net.cpp, Init).
        layer.phase = PHASES[node.message.phase] if node.message.HasField("phase") else self.phase
        if isinstance(layer, RunsCode):
            layer.allowed = self._allows_python
        elif isinstance(layer, WritesFiles):
            layer.allowed = self._allows_writes
        bottoms = [self.shapes[b] for b in node.bottoms]
        layer.train(self.phase == "TRAIN").setup(*bottoms)
        self.ignored += [f"{node.where}: {path} of layer {node.name} ({node.type})" for path in layer.check_fields()]
        if layer.aligns:
            layer.align(crop_offsets(self.graph, node, built))
        self._set_shapes(node, layer)
        register(self, node.key, layer)
        return layer

    def _set_shapes(self, node: Node, layer: Layer) -> None:
        shapes = layer.top_shapes(*(self.shapes[b] for b in node.bottoms))
        for top, shape in zip(node.tops, shapes, strict=True):
            self.shapes[top] = blob_shape(shape, self.dialect)

    def _fill(self, layer: Layer, names: Iterable[str] | None = None) -> None:
        """Draw a layer's parameters from their fillers: those named, or all, including values that Caffe discards."""
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
            strict: a file that lacks blobs of the net, or has layers that the net lacks, is an error.
            ignore_mismatched: skip blobs of other shapes instead of raising.

        Returns:
            A report: copied, missing, unexpected and mismatched blobs.

        Raises:
            WeightsError: as in Caffe, a different number of blobs, or other shapes.
        """
        return load((layer for _, layer in self.nodes), path, strict=strict, ignore_mismatched=ignore_mismatched)

    def _load_first(self, path: str | Path, fill: bool, mmap: bool) -> Account:
        """Load into a new net and draw the parameters that the file lacks; with ``mmap`` they are views of the file."""
        account = load((layer for _, layer in self.nodes), path, adopt=mmap)
        if fill:
            copied = set(account.copied)
            for _, layer in self.nodes:
                self._fill(
                    layer, [n for n in layer.fillers if n not in layer.shared and f"{layer.name}.{n}" not in copied]
                )
        return account

    def share_parameters(self, other: Net) -> None:
        """Share the parameters of the layers of ``other`` with the same names (net.cpp, ShareTrainedLayersWith).

        Raises:
            WeightsError: a layer of the same name has another number of blobs or other shapes.
        """
        theirs = {layer.name: layer for _, layer in reversed(other.nodes)}
        for _, layer in self.nodes:
            source = theirs.get(layer.name)
            if source is None or source is layer:
                continue
            if isinstance(layer, Foreign) and isinstance(source, Foreign) and layer.module is source.module:
                continue
            mine, shared = ([tuple(b.shape) for b in one.caffe_blobs] for one in (layer, source))
            foreign = bool(mine or shared) and (isinstance(layer, Foreign) or isinstance(source, Foreign))
            if mine != shared or foreign:
                wanted = f"{mine} ({layer.where})" if mine != shared else "the definition's layer in both nets"
                remedy = f"give both nets the same module: test_net.{layer.name} = net.{layer.name}" if foreign else ""
                raise WeightsError(f"layer {layer.name}", f"blobs {shared} to share", expected=wanted, remedy=remedy)
            for name, blob in zip(layer.blob_names, source.caffe_blobs, strict=True):
                setattr(layer, name, blob)

    def save(self, path: str | Path, *, diffs: bool = False, durable: bool = False, hdf5: bool | None = None) -> None:
        """Write the parameters as a file that real Caffe loads: HDF5 if the name ends in .h5, else a .caffemodel.

        The form is the definition's: ``layers`` with legacy dims where the prototxt has ``layers``, as the fork reads.
        An existing file is replaced once the new one is complete.

        Args:
            diffs: also write the parameters' diffs. durable: return when the file is on the disk.
            hdf5: the format, independent of the name.
        """
        seen = set()
        if hdf5 is None:
            hdf5 = str(path).endswith(".h5")
        check_savable(layer for _, layer in self.nodes)

        def host(blob: Tensor) -> np.ndarray:
            blob = blob.detach().cpu()
            return (blob.float() if blob.dtype in (torch.float16, torch.bfloat16) else blob).numpy()

        def array(blob: Tensor) -> np.ndarray | None:
            if hdf5 and id(blob) in seen:
                return None  # shared with an earlier layer, which stores it
            seen.add(id(blob))
            return host(blob)

        blobs = [[array(b) for b in layer.caffe_blobs] for _, layer in self.nodes]
        kept = [[host(layer.diff(n)) for n in layer.blob_names] for _, layer in self.nodes] if diffs else None
        form = "h5" if hdf5 else "caffemodel"
        write_net(path, self.definition, blobs, diffs=kept, format=form, overwrite=True, durable=durable)

    # -- running -------------------------------------------------------------------------------------------------------

    def reshape_for(self, inputs: Mapping[str, Shape]) -> None:
        """Compute every blob's shape for these input shapes; layers raise for invalid ones."""
        nodes = self.nodes  # if a layer was replaced, this clears the shapes
        if self._shaped_for == inputs:
            return
        for node, _ in nodes:
            if node.type == "Input":
                self.shapes.update((t, tuple(inputs[t])) for t in node.tops if t in inputs)
        self.reshape_nodes(range(len(nodes)))
        self._shaped_for = dict(inputs)

    def reshape_nodes(self, indices: Iterable[int]) -> None:
        """Compute the shapes of these nodes' tops from those of their bottoms."""
        for node, layer in map(self.nodes.__getitem__, indices):
            if node.type != "Input":
                self._set_shapes(node, layer)

    def forward(
        self, *given: Tensor | Mapping[str, Tensor], blobs: Iterable[str] | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Run on tensors.

        Args:
            given: a tensor for each input blob in the definition's order, or one mapping of them by name.
            blobs: blobs to return besides the outputs; of a blob that layers change in place, the last version.
            inputs: a tensor for each input blob, by name, with the net's dtype, device and number of axes.

        Returns:
            Every output blob's tensor by name.

        Raises:
            CaffeError: an input is missing, unknown, or of another dtype, device or rank; a blob is unknown.
            ShapeError: an invalid shape.
        """
        where = f"net {self.definition.net.name or self.definition.path}"
        tensors = named_inputs(self.graph.inputs, given, inputs, where)
        hidden = recorded(*tensors.values())
        if not (blobs or hidden or self.training):
            found = self.executor.repeated(tensors, self._like(), self._shaped_for)
            if found is not None:
                return found
        keep = [*dict.fromkeys([*self.graph.outputs, *known_blobs(blobs or (), self.shapes, where)])]
        if hidden:
            mode = Mode.PLAIN
            if traced():
                refuse_untraceable(layer for _, layer in self.nodes)
        else:
            ranks = {name: len(self.shapes[name]) if self.shapes[name] != (0,) else None for name in self.graph.inputs}
            check_inputs(tensors, ranks, self._like(), where)
            self.reshape_for({k: tuple(v.shape) for k, v in tensors.items()})
            mode = Mode.PLAIN if torch.is_grad_enabled() or self.training else Mode.INFER
            if mode is Mode.INFER and (rows := rows_at_once(self.executor, tensors, self.shapes, keep)):
                return run_in_parts(self.executor, tensors, keep, rows, self.reshape_for)
        self.executor.run(mode, tensors, keep=keep, as_caffe=self.gradients == "caffe" and not traced())
        if mode is Mode.INFER and not blobs:
            self.executor.remember(self._shaped_for)
        found = {name: tensors[name] if mode is Mode.PLAIN else tensors[name].contiguous() for name in keep}
        return {name: t.float() for name, t in found.items()} if self.precision == "bf16" else found

    def run_nodes(self, given: Mapping[str, Tensor], nodes: Sequence[int], keep: Collection[str]) -> dict[str, Tensor]:
        """Run only these nodes, without gradients, on the given blobs; returns those to keep, in any memory format."""
        blobs = dict(given)
        self.executor.run(Mode.INFER, blobs, nodes, keep=keep)
        return {name: blobs[name] for name in keep}

    def losses(self, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass: the weighted sum of the losses, on which ``backward()`` can be called, and every output blob.

        Layers that no gradient reaches run without autograd and store nothing; ``propagate_down`` and frozen layers are
        handled as in Caffe. Parameter gradients accumulate in ``grad``; those of a layer that overwrites its diffs are
        cleared first.
        """
        self.reshape_for({k: tuple(v.shape) for k, v in inputs.items()})
        blobs, keep = dict(inputs), {*self.graph.outputs}
        total = self.executor.run(Mode.TRAIN, blobs, keep=keep, low_memory=True, as_caffe=self.gradients != "true")
        total = torch.zeros((), device=self._like().device) if total is None else total
        return total, {name: blobs[name].detach() for name in self.graph.outputs}

    def _like(self) -> Tensor:
        """A tensor of the net's device and dtype."""
        anchor: Tensor = self._buffers["_anchor"]  # type: ignore[assignment]
        return anchor

    def call_layer(self, node: Node, layer: Layer, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A layer's tops, each in its blob's shape."""
        narrow = self.precision == "bf16" and bottoms and bottoms[0].device.type != "cpu"
        tops = call_in_bf16(layer, node, bottoms) if narrow else layer(*bottoms)
        return tuple(self.blob_view(t) for t in (tops if isinstance(tops, tuple) else (tops,)))

    def blob_view(self, t: Tensor) -> Tensor:
        """A layer's result in the shape of its blob in this dialect."""
        return t.view(blob_shape(tuple(t.shape), self.dialect)) if self.dialect.legacy_shapes and t.dim() < 4 else t

    # -- the layers' modules -------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[tuple[Node, Layer]]:
        """The graph's nodes, each with its current module."""
        return self.executor.nodes

    @property
    def needs(self) -> Needs:
        """The gradients that a backward pass computes."""
        return self.executor.needs

    @property
    def caffe_gradients(self) -> CaffeGradients:
        """The layers whose gradient in Caffe is not their derivative."""
        return self.executor.caffe_gradients

    @property
    def executor(self) -> Executor:
        """The executor; recreated when a layer was replaced.

        Raises:
            CaffeError: a layer was removed, or replaced by one with other bottoms or tops.
        """
        kept, keys = self._executor, self._keys
        own = map(self._modules.get, keys) if keys else (found_at(self, path) for path in self._paths)
        if kept is not None and all(map(is_, own, kept.modules)):
            return kept
        self._executor = self._compiled([found_at(self, path) for path in self._paths])
        self._shaped_for = None
        return self._executor

    def _compiled(self, modules: Sequence[nn.Module | None]) -> Executor:
        found, layers = list[nn.Module](), list[Layer]()
        for place, module in zip(self._places, modules, strict=True):
            where = f"{place.where}: layer {place.name} ({place.type_name})"
            if module is None:
                raise CaffeError(where, "no module in its place", remedy="torch.nn.Identity() skips a layer")
            layer = module if isinstance(module, Layer) else Foreign(module, place)
            if (layer.n_bottoms, layer.n_tops) != (place.n_bottoms, place.n_tops):
                given = f"a layer of {layer.n_bottoms} bottoms and {layer.n_tops} tops in its place"
                raise CaffeError(where, given, expected=f"{place.n_bottoms} and {place.n_tops}")
            found.append(module)
            layers.append(layer)
        nodes = list(zip(self.graph.nodes, layers, strict=True))
        weights = [[self.loss_weights[top] for top in node.tops] for node, _ in nodes]
        facts = [Facts(learned_blobs(n, lay), w, lay.labels) for (n, lay), w in zip(nodes, weights, strict=True)]
        return Executor(
            self.graph,
            found,
            layers,
            [place.kind for place in self._places],
            call=self.call_layer,
            shaped=self.blob_view,
            needs=needs_backward(self.graph, facts, force=self.definition.net.force_backward),
            loss_weights=self.loss_weights,
            half=self.precision == "bf16",
        )

    def __getstate__(self) -> dict[str, Any]:
        """The state without packed weights and other caches of earlier passes."""
        return {**self.__dict__, "_executor": None}

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        replica._executor, replica.shapes, replica._shaped_for = None, dict(self.shapes), None
        return replica

    def extra_repr(self) -> str:
        return f"{self.definition.net.name}, dialect={self.dialect.name}, phase={self.phase}"
