"""Net with blobs: data and diffs under every name, forward and backward layer by layer, as pycaffe has them.

Source: net.cpp, python/caffe/_caffe.cpp, python/caffe/pycaffe.py (both programs).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from caffe_port import net as core
from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, WeightsError
from caffe_port.layers.base import Layer
from caffe_port.pycaffe import mode
from caffe_port.pycaffe.batching import Batching
from caffe_port.pycaffe.blob import Blob
from caffe_port.pycaffe.older import Older
from caffe_port.schema import Definition, read_net
from caffe_port.schema.messages import TEST, TRAIN
from caffe_port.weight_loading import Account

__all__ = ["Blob", "Net"]

_PHASES = {TRAIN: "TRAIN", TEST: "TEST", "TRAIN": "TRAIN", "TEST": "TEST"}


class Net(Batching, Older):
    """A net as pycaffe shows it, and an ``nn.Module`` beside.

    ``Net(prototxt, phase, level, stages, weights)``, ``Net(prototxt, weights, phase)`` and ``Net(prototxt, weights)``
    all work. Without a phase it is TEST; but data layers of noh then crop at random as in TRAIN, the phase in which the
    fork's pycaffe builds every net. Tensors in, tensors out: ``net(data=tensor)`` is the module of
    :class:`caffe_port.net.Net`. Arrays or nothing in, arrays out: ``net.forward()`` runs on the blobs.

    Every blob has ``data`` and ``diff``, views that may be written to. Of an in-place blob, data is the last version
    and diff, after backward, the first version's, as in Caffe, where all versions share their memory.

    The net lives where :func:`caffe_port.pycaffe.mode.device` says when it is built, and moves by ``net.to(device)``.

    Raises:
        CaffeError: any fault of the definition or the weights.
    """

    def __init__(
        self,
        source: Any,
        *args: Any,
        dialect: str | Dialect | None = None,
        proto: str | Path | None = None,
        allow_python: bool | None = None,
        **named: Any,
    ) -> None:
        given = _arguments(args, named)
        phase = given.get("phase", TEST)
        if not isinstance(phase, (int, str)) or phase not in _PHASES:
            raise CaffeError("Net", f"phase {phase!r}", expected="TRAIN or TEST")
        if not isinstance(source, Definition):
            state = {"level": given.get("level", 0), "stages": tuple(given.get("stages", ()))}
            source = read_net(source, phase=_PHASES[phase], dialect=dialect, proto=proto, **state)
            if "phase" not in given and source.dialect.test_nets_crop_at_random:
                for layer in source.net.layer:
                    if not layer.bottom:
                        layer.phase = TRAIN
        super().__init__(source, given.get("weights"), _PHASES[phase], allow_python=allow_python)
        self.to(mode.device())
        self._start_passes()
        self.mean, self.input_scale, self.raw_scale, self.channel_swap = {}, {}, {}, {}
        self.blobs = OrderedDict(zip(self._blob_names, self._blobs, strict=True))
        self.params = OrderedDict((layer.name, layer.blobs) for _, layer in self.nodes if layer.blob_names)
        self.register_state_dict_pre_hook(_sync)

    # -- weights -------------------------------------------------------------------------------------------------------

    def copy_from(self, path: str | Path) -> Account:
        """Load weights by layer name; the account of what was copied."""
        return self.load(path)

    def load(self, path: str | Path, **options: Any) -> Account:
        """Load weights as :meth:`caffe_port.net.Net.load` does."""
        self.sync()
        return super().load(path, **options)

    def load_hdf5(self, path: str | Path) -> Account:
        """Load weights; the same as :meth:`copy_from`, which knows HDF5 when it sees it."""
        return self.load(path)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the parameters as :meth:`caffe_port.net.Net.save` does."""
        self.sync()
        super().save(path, **options)

    def save_hdf5(self, path: str | Path, *, diffs: bool = False) -> None:
        """Write the parameters as HDF5, whatever the name."""
        self.save(path, diffs=diffs, hdf5=True)

    def share_with(self, other: core.Net) -> None:
        """Use the numbers of the parameters of ``other``, layer by layer of the same name; diffs stay apart.

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


def _arguments(args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the prototxt by name: BVLC's order, or the older one where weights come first."""
    older = bool(args) and isinstance(args[0], (str, Path)) and args[0] not in _PHASES
    order = ("weights", "phase") if older else ("phase", "level", "stages", "weights")
    unknown = [name for name in named if name not in ("weights", "phase", "level", "stages")]
    twice = [name for name in order[: len(args)] if name in named]
    if unknown or twice or len(args) > len(order):
        found = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())])
        raise CaffeError("Net", f"arguments {found}", expected="prototxt, phase, level, stages, weights")
    given = {**dict(zip(order, args, strict=False)), **named}
    return {name: value for name, value in given.items() if value is not None}
