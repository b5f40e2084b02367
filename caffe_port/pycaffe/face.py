"""A net's names as pycaffe has them, and its forward and backward.

Source: net.cpp, python/caffe/_caffe.cpp, python/caffe/pycaffe.py (both programs).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from caffe_port import net as core
from caffe_port.errors import CaffeError, ShapeError, nearest
from caffe_port.layers.base import Layer
from caffe_port.layers.blobs import BlobVec
from caffe_port.layers.data_arrays import MemoryData
from caffe_port.layers.python import Python, PythonLayer
from caffe_port.pycaffe.blob import Blob
from caffe_port.pycaffe.passes import Passes

__all__ = ["Face"]


class Face(Passes):
    """What a :class:`caffe_port.pycaffe.net.Net` is asked and told by name.

    Attributes:
        blobs: the blobs by name, in Caffe's order. params: each layer's parameter blobs by its name.
    """

    blobs: OrderedDict[str, Blob]
    params: OrderedDict[str, BlobVec]

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
    def layers(self) -> list[Layer | PythonLayer]:
        """The layers in running order, the inserted splits among them; of a layer in Python, the user's object."""
        return [layer.user if isinstance(layer, Python) else layer for node, layer in self.nodes if node.shown]

    @property
    def layer_dict(self) -> OrderedDict[str, Layer | PythonLayer]:
        """The layers by name."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's tops."""
        return OrderedDict((node.name, [_shown(top) for top in node.tops]) for node, _ in self.nodes if node.shown)

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's bottoms."""
        return OrderedDict((node.name, list(node.bottoms)) for node, _ in self.nodes if node.shown)

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """How much each blob counts as a loss."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @property
    def _layer_names(self) -> list[str]:
        return [node.name for node, _ in self.nodes if node.shown]

    @property
    def _blob_names(self) -> list[str]:
        return [_shown(name) for name in self.graph.blobs]

    @property
    def _blobs(self) -> list[Blob]:
        return [Blob(self._data, self._diff, name) for name in self.graph.blobs]

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
        return [self.graph.blobs.index(name) for name in self._node(layer).tops]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self.graph.blobs.index(name) for name in self._node(layer).bottoms]

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(
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
            blobs: blobs to return beside the outputs.
            start, end: run only from layer ``start`` to layer ``end``, on the blobs as they are.
            inputs: values for input blobs; all arrays (their data is set), or all tensors (the module's way).

        Returns:
            Output blobs by name, those of layer ``end`` if that is given: arrays, or tensors if tensors were given.

        Raises:
            CaffeError: an unknown layer or input; in bvlc, where pycaffe wants all inputs or none, one that is missing.
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
            self._set("data", inputs, self.inputs)
        first, last = self._span(start, end)
        self._run_forward(first, last)
        names = self.outputs if end is None else list(self.nodes[last][0].tops)
        return {name: self._blob(_shown(name)).data for name in dict.fromkeys([*names, *(blobs or ())])}

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **seeds: Any
    ) -> dict[str, np.ndarray]:
        """Run backward over what the last forward did, from the diffs that the blobs hold (a loss's is its weight).

        Args:
            diffs: blobs whose diffs to return beside the inputs'.
            start, end: run only from layer ``start`` back to layer ``end``.
            seeds: diffs to set before, for output blobs.

        Returns:
            The diffs of the inputs (of ``end``'s bottoms) by blob name.

        Raises:
            CaffeError, ShapeError: as :meth:`forward`.
        """
        if seeds:
            self._set("diff", seeds, self.outputs)
        low, high = self._span(end, start)
        self._run_backward(high, low)
        names = self.inputs if end is None else list(self.nodes[low][0].bottoms)
        return {name: self._blob(name).diff for name in dict.fromkeys([*names, *(diffs or ())])}

    def _forward(self, start: int, end: int) -> float:
        """Run the layers from number ``start`` to number ``end``; the sum of the losses, weighted."""
        return self._run_forward(self._node(start).index, self._node(end).index)

    def _backward(self, start: int, end: int) -> None:
        """Run the layers backward from number ``start`` down to number ``end``."""
        self._run_backward(self._node(start).index, self._node(end).index)

    def before_forward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's number before it runs forward, every time, after what was registered earlier."""
        self._callbacks["before forward"].append(run)

    def after_forward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's number after it ran forward."""
        self._callbacks["after forward"].append(run)

    def before_backward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's number before its turn in backward, also if it has nothing to do there."""
        self._callbacks["before backward"].append(run)

    def after_backward(self, run: Callable[[int], object]) -> None:
        """Call ``run`` with a layer's number after its turn in backward."""
        self._callbacks["after backward"].append(run)

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Give the net's MemoryData layer, its first layer, what to take batches from.

        Args:
            data: float32, (items, channels, height, width). labels: float32, one for each item.

        Raises:
            CaffeError: the first layer is another. LayerError: arrays of another shape or type.
        """
        first = self.nodes[0][1]
        if not isinstance(first, MemoryData):
            raise CaffeError("set_input_arrays", f"a net that starts with {first.type}", expected="MemoryData")
        first.set_input_arrays(data, labels)

    def _set(self, what: str, given: dict[str, Any], names: list[str]) -> None:
        """Write to the data or diffs of inputs or outputs."""
        noun = "input" if what == "data" else "output"
        for name in given:
            if name not in names:
                raise CaffeError("net", f"no {noun} {name!r}", expected=", ".join(names) or f"no {noun}s")
        missing = [name for name in names if name not in given]
        if missing and self.dialect.all_inputs_or_none:
            raise CaffeError(
                "net", f"nothing for {', '.join(missing)}", expected=f"values for all {noun}s, or for none"
            )
        for name, value in given.items():
            array, target = np.asarray(value), getattr(self.blobs[name], what)
            try:
                if array.shape[:1] != target.shape[:1]:
                    raise ValueError
                target[...] = array
            except ValueError:
                where, fits = f"{noun} {name}", f"{target.shape}"
                found = f"shape {array.shape}"
                raise ShapeError(where, found, expected=fits, remedy="reshape the blob first") from None

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


def _shown(blob: str) -> str:
    """A blob's name for the user: that of a loss's unnamed top has no number in Caffe."""
    return "(automatic)" if blob.startswith("(automatic") else blob
