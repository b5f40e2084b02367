"""Loading weights into a net, with a report on every blob, see :mod:`caffe_port.formats.fitting`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe_port.console import info
from caffe_port.errors import WeightsError
from caffe_port.formats import open_weights
from caffe_port.formats.fitting import Account, fit
from caffe_port.formats.mapping import file_span, read_spans
from caffe_port.layers.base import Layer

__all__ = ["Account", "load"]


def load(
    layers: Iterable[Layer],
    path: str | Path,
    *,
    strict: bool = False,
    ignore_mismatched: bool = False,
    adopt: bool = False,
) -> Account:
    """Copy the blobs of a weight file into a net's layers by their names.

    Prints a report on stderr, unless GLOG_minloglevel is above 0.

    Args:
        strict: a file that lacks blobs of the net, or has layers that the net lacks, is an error.
        ignore_mismatched: skip blobs that do not fit instead of raising.
        adopt: use the file's memory-mapped arrays as the net's parameters (a private, writable view); only for a net
            whose parameters have not been accessed. Otherwise the values are read into the parameters' memory, and
            the file may change afterwards.

    Raises:
        WeightsError: a different number of blobs, or other shapes; with ``strict`` also missing or unexpected layers.
        FormatError, FileError: the file cannot be read.
    """
    put = _Put(str(path), adopt)

    def take(layer: Layer, name: str, array: np.ndarray) -> None:
        if not layer.holds(name):
            raise WeightsError(
                f"{layer.where}: layer {layer.name}",
                f"{name} is computed from other parameters (parametrized, normalised or pruned)",
                expected="a parameter to load into",
                remedy="load before that, or remove it first",
            )
        put(getattr(layer, name), array)

    weights = open_weights(path, writable=adopt)
    account = fit(weights, layers, take, strict=strict, ignore_mismatched=ignore_mismatched)
    put.finish()
    info(account)
    return account


class _Put:
    """Copies arrays of a file into a net's tensors.

    Arrays stored in the tensor's form are read at the end, together by several threads (a parameter shared by several
    layers once, from the last that has it, as if they were copied in order).
    """

    def __init__(self, path: str, adopt: bool) -> None:
        self.path, self.adopt = path, adopt
        self.spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, target: Tensor, array: np.ndarray) -> None:
        self.spans.pop(target.data_ptr(), None)
        same = target.device.type == "cpu" and target.is_contiguous() and _DTYPES.get(target.dtype) == array.dtype
        if same and not self.adopt and file_span(array):
            self.spans[target.data_ptr()] = (target.detach().numpy(), array)
            return
        if not array.dtype.isnative or not array.flags.writeable:
            array = array.astype(array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(array)
        if self.adopt and tensor.dtype == target.dtype and target.device.type == "cpu":
            target.data = tensor
        else:
            with torch.no_grad():
                target.copy_(tensor)

    def finish(self) -> None:
        read_spans(self.spans.values(), self.path)


_DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
}
