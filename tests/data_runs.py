"""Running nets of data layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import torch

from caffe_port.execution.executor import Mode
from caffe_port.net import Net

__all__ = ["Blobs", "definition", "passes", "settle"]

Blobs = dict[str, np.ndarray]


def definition(type_name: str, block: str, more: str = "", tops: str = 'top: "data" top: "label"') -> str:
    return f'layer {{ name: "d" type: "{type_name}" {tops} {block} {more} }}'


def passes(net: Net, count: int) -> Iterator[Blobs]:
    """All blobs of ``count`` passes, copied: batches may be views of what the next pass overwrites."""
    for _ in range(count):
        blobs: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            net.executor.run(Mode.PLAIN, blobs)
        yield {name: tensor.numpy().copy() for name, tensor in blobs.items()}


def settle() -> None:
    """Wait for the batches that are being made."""
    for thread in threading.enumerate():
        if thread.name == "caffe_port data":
            thread.join(10)
