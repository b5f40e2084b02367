"""Batches whose blobs do not fit into memory are run in parts, where every layer computes each item by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_port.execution import memory
from caffe_port.execution.executor import Executor, Mode
from caffe_port.execution.observed import all_observed, observed
from caffe_port.layers.base import Layer, Shape
from caffe_port.layers.neuron import Dropout
from caffe_port.layers.normalization import BN, BatchNorm

__all__ = ["available", "itemwise", "rows_at_once", "run_in_parts"]

_TYPES = """AbsVal ArgMax BN BNLL BatchNorm Bias Concat Convolution Crop Deconvolution Dropout ELU Eltwise Exp Flatten
InnerProduct Input Interp LRN Log PReLU Pooling Power ReLU ReLU6 Scale Sigmoid Slice Softmax Split TanH Threshold
Unpooling"""
_ITEMWISE = frozenset(_TYPES.split())
"""Types that compute each item of a batch by itself, if the axes that they work along are others than the first."""
_GROUP = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
"""Files of a control group, version 2 and 1: the most bytes, and those in use."""
_AXES = ("along", "channel_axis", "from_axis", "over")


def _itemwise(layer: Layer) -> bool:
    if layer.type not in _ITEMWISE or any(getattr(layer, name, None) == 0 for name in _AXES):
        return False
    if isinstance(layer, BN):
        return not layer.learn
    if isinstance(layer, Dropout) and layer.drops():
        return False
    return not isinstance(layer, BatchNorm) or layer.uses_blobs()


def itemwise(executor: Executor) -> bool:
    """Whether a net computes each item of a batch by itself, and calls nothing of the user's."""
    changed = all_observed() or any(map(observed, executor.modules, executor.kinds))
    return not changed and all(_itemwise(layer) for _, layer in executor.nodes)


def available() -> int:
    """Bytes that this process may still take: the machine's, or its control group's."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10)
    group = Path("/sys/fs/cgroup")
    for most, used in _GROUP:
        with suppress(OSError, ValueError):
            found.append(int((group / most).read_text()) - int((group / used).read_text()))
    return max(0, min(found, default=1 << 62))


def rows_at_once(
    executor: Executor, inputs: Mapping[str, Tensor], shapes: Mapping[str, Shape], keep: Collection[str]
) -> int | None:
    """How many items fit into half of the available memory; None where all do, or items cannot be separated.

    Args:
        shapes: of all blobs, for the whole batch. keep: the blobs that are kept to the end.
    """
    if any(t.device.type != "cpu" for t in inputs.values()):
        return None
    needed = executor.most_bytes(tuple(inputs.values()), shapes, keep)
    if needed < memory.SMALL or needed <= (room := available() // 2):
        return None
    items = {shapes[name][:1] for node, _ in executor.nodes for name in (*node.bottoms, *node.tops)}
    (count,) = next(iter(items)) if len(items) == 1 and () not in items else (1,)
    if count < 2 or not itemwise(executor):
        return None
    return int(max(1, count * room // needed))


def run_in_parts(
    executor: Executor, inputs: Mapping[str, Tensor], keep: Collection[str], rows: int, reshape: Callable[[Any], None]
) -> dict[str, Tensor]:
    """The blobs to keep, of a batch that is run ``rows`` items at a time.

    Args:
        reshape: called with the inputs' shapes before each part, and at the end with those of the whole batch.
    """
    whole = {name: tuple(t.shape) for name, t in inputs.items()}
    count = next(iter(whole.values()))[0]
    found: dict[str, Tensor] = {}
    for start in range(0, count, rows):
        blobs = {name: t[start : start + rows] for name, t in inputs.items()}
        reshape({name: tuple(t.shape) for name, t in blobs.items()})
        executor.run(Mode.INFER, blobs, keep=keep)
        for name in keep:
            one = blobs[name]
            if name not in found:
                found[name] = torch.empty((count, *one.shape[1:]), dtype=one.dtype)
            found[name][start : start + rows] = one
    reshape(whole)
    return found
