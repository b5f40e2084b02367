"""Net with blobs: data and diffs of every blob, forward and backward layer by layer, as in pycaffe.

Source: net.cpp, python/caffe/_caffe.cpp, python/caffe/pycaffe.py (both programs).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from caffe_port import net as core
from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, WeightsError, nearest
from caffe_port.layers.base import Layer, Shape
from caffe_port.layers.blobs import BlobVec
from caffe_port.layers.data_arrays import MemoryData
from caffe_port.layers.python import Python, PythonLayer
from caffe_port.pycaffe import batching, mode
from caffe_port.pycaffe.arguments import arguments
from caffe_port.pycaffe.blob import Blob, fill, shown_name
from caffe_port.pycaffe.passes import Passes
from caffe_port.pycaffe.preprocessing import Preprocessing
from caffe_port.schema import Definition, read_net
from caffe_port.schema.messages import TRAIN
from caffe_port.weight_loading import Account

__all__ = ["Blob", "Net"]


class Net(core.Net):
    """pycaffe's Net, which is also an ``nn.Module``.

    ``Net(prototxt, phase, level, stages, weights)``, ``Net(prototxt, weights, phase)`` and ``Net(prototxt, weights)``
    all work. Without a phase it is TEST; but data layers of noh then crop at random as in TRAIN, the phase in which the
    fork's pycaffe builds every net. Tensors in, tensors out: ``net(data=tensor)`` is the module of
    :class:`caffe_port.net.Net`. Arrays or nothing in, arrays out: ``net.forward()`` runs on the blobs.

    Every blob has ``data`` and ``diff``, views that may be written to. Of an in-place blob, data is the last version
    and diff, after backward, the first version's, as in Caffe, where all versions share their memory.

    It is built on the device of :func:`caffe_port.pycaffe.mode.device`; ``net.to(device)`` moves it. Other
    options are as in :class:`caffe_port.net.Net`.

    Raises:
        CaffeError: any error in the definition or the weights.
    """

    _passes: Passes
    _pictures: Preprocessing
    _by_name: OrderedDict[str, Blob]

    def __init__(
        self,
        source: Any,
        *args: Any,
        dialect: str | Dialect | None = None,
        proto: str | Path | None = None,
        **named: Any,
    ) -> None:
        options = {name: named.pop(name) for name in core.Net.OPTIONS if name in named}
        given = arguments(args, named)
        phase = given.get("phase", "TEST")
        if not isinstance(source, Definition):
            state = {"level": given.get("level", 0), "stages": tuple(given.get("stages", ()))}
            source = read_net(source, phase=phase, dialect=dialect, proto=proto, **state)
            if "phase" not in given and source.dialect.test_nets_crop_at_random:
                for layer in source.net.layer:
                    if not layer.bottom:
                        layer.phase = TRAIN
        super().__init__(source, given.get("weights"), phase, **options)
        self.to(mode.device())
        self.__dict__.update(_passes=Passes(self), _pictures=Preprocessing(self._shape_of_input))
        self.__dict__.update(_by_name=OrderedDict(zip(self._blob_names, self._blobs, strict=True)))
        self.register_state_dict_pre_hook(_sync)

    # -- names ---------------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[str]:
        """The blobs to fill before forward."""
        return list(self.graph.inputs)

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads."""
        return list(self.graph.outputs)

    @property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, in Caffe's order."""
        return self._by_name

    @property
    def params(self) -> OrderedDict[str, BlobVec]:
        """Each layer's parameter blobs by its name."""
        return OrderedDict((layer.name, layer.blobs) for _, layer in self.nodes if layer.blob_names)

    @property
    def layers(self) -> list[Layer | PythonLayer]:
        """The layers in order of execution, including inserted splits; of a layer in Python, the user's object."""
        return [layer.user if isinstance(layer, Python) else layer for node, layer in self.nodes if node.shown]

    @property
    def layer_dict(self) -> OrderedDict[str, Layer | PythonLayer]:
        """The layers by name."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's tops."""
        return OrderedDict((node.name, [shown_name(top) for top in node.tops]) for node, _ in self.nodes if node.shown)

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's bottoms."""
        return OrderedDict((node.name, list(node.bottoms)) for node, _ in self.nodes if node.shown)

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """Each blob's loss weight."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @property
    def _layer_names(self) -> list[str]:
        return [node.name for node, _ in self.nodes if node.shown]

    @property
    def _blob_names(self) -> list[str]:
        return [shown_name(name) for name in self.graph.blobs]

    @property
    def _blobs(self) -> list[Blob]:
        return [Blob(self._passes.data, self._passes.diff, name) for name in self.graph.blobs]

    @property
    def _blob_loss_weights(self) -> list[float]:
        return [self.loss_weights[name] for name in self.graph.blobs]

    @property
    def _inputs(self) -> list[int]:
        return [self.graph.blobs.index(name) for name in self.graph.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self.graph.blobs.index(name) for name in self.graph.outputs]

    def _top_ids(self, layer: int) -> list[int]:
        return [self.graph.blobs.index(name) for name in self._passes.node(layer).tops]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self.graph.blobs.index(name) for name in self._passes.node(layer).bottoms]

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]  # an input cannot be called start or end, as in pycaffe
        self,
        *given: Any,
        blobs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Run forward.

        Args:
            given: ``blobs``, ``start``, ``end`` by position, as in pycaffe; or the inputs: a tensor for each input
                blob, or one mapping from their names.
            blobs: blobs to return besides the outputs.
            start, end: run only from layer ``start`` to layer ``end``, on the blobs' current values.
            inputs: values for input blobs; all arrays (their data is set), or all tensors (as for a module).

        Returns:
            Output blobs by name, those of layer ``end`` if that is given: arrays, or tensors if tensors were given.

        Raises:
            CaffeError: an unknown layer or input; in bvlc, where pycaffe requires all inputs or none, a missing one.
            ShapeError: a value that does not fit its blob.
        """
        if given and isinstance(given[0], Tensor):
            return core.Net.forward(self, *given, blobs=blobs, **inputs)
        if given and isinstance(given[0], Mapping):
            inputs, given = {**given[0], **inputs}, given[1:]
        if given:
            named = dict(zip(("blobs", "start", "end"), given, strict=False))
            return self.forward(**{"blobs": blobs, "start": start, "end": end, **inputs, **named})
        if inputs and all(isinstance(v, Tensor) for v in inputs.values()) and start is None is end:
            return core.Net.forward(self, inputs, blobs=blobs)
        if inputs:
            fill(self.blobs, "data", inputs, self.inputs, all_or_none=self.dialect.all_inputs_or_none)
        first, last = self._span(start, end)
        self._passes.forward(first, last)
        names = self.outputs if end is None else list(self.nodes[last][0].tops)
        return {name: self._blob(shown_name(name)).data for name in dict.fromkeys([*names, *(blobs or ())])}

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **seeds: Any
    ) -> dict[str, np.ndarray]:
        """Run backward over the last forward pass, from the blobs' diffs (a loss's is its weight).

        Args:
            diffs: blobs whose diffs to return besides the inputs'.
            start, end: run only from layer ``start`` back to layer ``end``.
            seeds: diffs to set before, for output blobs.

        Returns:
            The diffs of the inputs (of ``end``'s bottoms) by blob name.

        Raises:
            CaffeError, ShapeError: as :meth:`forward`.
        """
        if seeds:
            fill(self.blobs, "diff", seeds, self.outputs, all_or_none=self.dialect.all_inputs_or_none)
        low, high = self._span(end, start)
        self._passes.backward(high, low)
        names = self.inputs if end is None else list(self.nodes[low][0].bottoms)
        return {name: self._blob(name).diff for name in dict.fromkeys([*names, *(diffs or ())])}

    def _forward(self, start: int, end: int) -> float:
        """Run the layers with indices ``start`` to ``end``; returns the weighted sum of the losses."""
        return self._passes.forward(self._passes.node(start).index, self._passes.node(end).index)

    def _backward(self, start: int, end: int) -> None:
        """Run the layers backward from index ``start`` down to ``end``."""
        self._passes.backward(self._passes.node(start).index, self._passes.node(end).index)

    def before_forward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's index before it runs forward, after the callbacks registered earlier."""
        self._passes.callbacks["before forward"].append(run)

    def after_forward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's index after it ran forward."""
        self._passes.callbacks["after forward"].append(run)

    def before_backward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's index before its backward pass, even if that computes nothing."""
        self._passes.callbacks["before backward"].append(run)

    def after_backward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's index after its backward pass."""
        self._passes.callbacks["after backward"].append(run)

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Set the arrays from which the net's MemoryData layer, its first layer, takes batches.

        Args:
            data: float32, (items, channels, height, width). labels: float32, one for each item.

        Raises:
            CaffeError: the first layer is another. LayerError: arrays of another shape or type.
        """
        if not isinstance(first := self.nodes[0][1], MemoryData):
            raise CaffeError("set_input_arrays", f"a net that starts with {first.type}", expected="MemoryData")
        first.set_input_arrays(data, labels)

    def _blob(self, name: str) -> Blob:
        if name not in self.blobs:
            near = nearest(name, self.blobs)
            raise CaffeError("net", f"no blob {name!r}", remedy=f"near: {near}" if near else "")
        return self.blobs[name]

    def _span(self, start: str | None, end: str | None) -> tuple[int, int]:
        first = 0 if start is None else self._index(start)
        return first, len(self.nodes) - 1 if end is None else self._index(end)

    def _index(self, name: str) -> int:
        for node, _ in self.nodes:
            if node.name == name:
                return node.index
        near = nearest(name, self._layer_names)
        raise CaffeError("net", f"no layer {name!r}", remedy=f"near: {near}" if near else "")

    def train(self, mode: bool = True) -> Net:
        """As in any module; random numbers are kept for backward from now on."""
        if "_passes" in self.__dict__:
            self._passes.records |= mode
        return super().train(mode)

    def sync(self) -> None:
        """Copy values written to host copies of another device's tensors back. Passes call this themselves."""
        self._passes.sync()

    def reshape(self) -> None:
        """Set every blob's shape from the inputs' shapes; layers raise for invalid ones."""
        self._passes.reshape()

    # -- many items ----------------------------------------------------------------------------------------------------

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: Any) -> dict[str, Any]:
        """Run forward over any number of items, the last batch padded with zeros.

        Args:
            blobs: blobs to return besides the net's outputs.
            inputs: arrays for all input blobs, with any number of items.

        Returns:
            Output blobs by name, as many items as ``inputs`` has.
        """
        return batching.forward_all(self, blobs, inputs)

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **given: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run forward and backward over any number of items, batch by batch.

        Args:
            blobs, diffs: blobs, and diffs, to return besides the net's outputs and input diffs.
            given: arrays for input blobs, and diffs for output blobs. Where one of the two is missing or shorter, the
                passes use the blobs' values.

        Returns:
            Output blobs and input diffs by name, as many items as were given.
        """
        return batching.forward_backward_all(self, blobs, diffs, given)

    # -- the fork's older methods --------------------------------------------------------------------------------------

    def set_phase_train(self) -> None:
        """Let layers run as in training (dropout) from now on."""
        self.train()

    def set_phase_test(self) -> None:
        """Let layers run as in testing from now on."""
        self.eval()

    def set_mode_cpu(self) -> None:
        """Move this net, and nets built from now on, to the CPU."""
        mode.set_mode_cpu()
        self.to(mode.device())

    def set_mode_gpu(self) -> None:
        """Move this net, and nets built from now on, to the GPU; without a GPU, one warning."""
        mode.set_mode_gpu(stacklevel=3)
        self.to(mode.device())

    def set_device(self, device_id: int) -> None:
        """Choose the GPU."""
        mode.set_device(device_id)
        self.to(mode.device())

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """By input blob, the mean that :meth:`preprocess` subtracts."""
        return self._pictures.mean

    @property
    def input_scale(self) -> dict[str, float]:
        """By input blob, the factor that :meth:`preprocess` applies last."""
        return self._pictures.input_scale

    @property
    def raw_scale(self) -> dict[str, float]:
        """By input blob, the factor that :meth:`preprocess` applies first."""
        return self._pictures.raw_scale

    @property
    def channel_swap(self) -> dict[str, Sequence[int]]:
        """By input blob, the order of channels in :meth:`preprocess`."""
        return self._pictures.channel_swap

    def set_mean(self, input_: str, mean: np.ndarray, mode: str = "elementwise") -> None:
        """Subtract a (channels, height, width) mean, resized, or (``mode="channel"``) its channels' means."""
        self._pictures.set_mean(input_, mean, mode)

    def set_input_scale(self, input_: str, scale: float) -> None:
        """Set the factor applied last."""
        self._pictures.set_input_scale(input_, scale)

    def set_raw_scale(self, input_: str, scale: float) -> None:
        """Set the factor applied before the mean is subtracted."""
        self._pictures.set_raw_scale(input_, scale)

    def set_channel_swap(self, input_: str, order: Sequence[int]) -> None:
        """Set the order of channels: (2, 1, 0) converts RGB to BGR."""
        self._pictures.set_channel_swap(input_, order)

    def preprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """A (height, width, channels) picture in the input's form: float32, (channels, height, width)."""
        return self._pictures.preprocess(input_name, input_)

    def deprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`preprocess`, without the resizing."""
        return self._pictures.deprocess(input_name, input_)

    def _shape_of_input(self, name: str) -> Shape:
        if name not in self.inputs:
            raise CaffeError("net", f"no input {name!r}", expected=", ".join(self.inputs) or "no inputs")
        return self.blobs[name].shape

    # -- weights -------------------------------------------------------------------------------------------------------

    def copy_from(self, path: str | Path) -> Account:
        """Load weights by layer name; returns a report of the blobs."""
        return self.load(path)

    def load(self, path: str | Path, **options: Any) -> Account:
        """Load weights as :meth:`caffe_port.net.Net.load` does."""
        self.sync()
        return super().load(path, **options)

    def load_hdf5(self, path: str | Path) -> Account:
        """Load weights; the same as :meth:`copy_from`, which detects HDF5."""
        return self.load(path)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the parameters as :meth:`caffe_port.net.Net.save` does."""
        self.sync()
        super().save(path, **options)

    def save_hdf5(self, path: str | Path, *, diffs: bool = False) -> None:
        """Write the parameters as HDF5, independent of the name."""
        self.save(path, diffs=diffs, hdf5=True)

    def share_with(self, other: core.Net) -> None:
        """Share the parameters' values of ``other``, by layer name; diffs stay separate.

        Raises:
            WeightsError: a layer has another number of blobs there, or other shapes.
        """
        for net in (self, other):
            if isinstance(net, Net):
                net.sync()
        mine: dict[str, Layer] = {}
        for _, layer in self.nodes:
            mine.setdefault(layer.name, layer)
        for _, source in other.nodes:
            if source.name not in mine:
                continue
            target = mine[source.name]
            shapes, wanted = ([tuple(b.shape) for b in one.caffe_blobs] for one in (source, target))
            if shapes != wanted:
                raise WeightsError(f"layer {source.name}", f"blobs of shapes {shapes} to share", expected=f"{wanted}")
            for blob, shared in zip(target.caffe_blobs, source.caffe_blobs, strict=True):
                blob.data = shared.data

    def clear_param_diffs(self) -> None:
        """Set every parameter's diff to zero."""
        self.sync()
        for p in self.parameters():
            if p.grad is not None:
                p.grad.zero_()


def _sync(net: Net, *_: Any) -> None:
    net.sync()
