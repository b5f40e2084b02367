"""Finds the layer or parameter where numbers that are not finite first appear."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.execution.executor import Mode

if TYPE_CHECKING:
    from caffe_port.net import Net
    from caffe_port.solver.state import SolverState

__all__ = ["DivergedError", "check_parameters", "diverged"]

_ADVICE = "lower the rate (--set base_lr=...) or clip gradients (--set clip_gradients=...); --keep-going continues"


class DivergedError(CaffeError):
    """Numbers in training are not finite."""


@torch.no_grad()
def diverged(net: Net, state: SolverState, passes: int, loss: float) -> DivergedError:
    """The error for a loss that is not finite: the iteration is run again, with the same batches and the same draws,
    layer by layer, up to the first blob that is not finite.

    Args:
        passes: forward passes in an iteration (``iter_size``).
    """
    if state.position:
        state.position.back()
    if isfinite(loss):
        return DivergedError(f"iteration {state.iter}", "the loss of another process is not finite", remedy=_ADVICE)
    place = _in_parameters(net) or _in_passes(net, passes) or "not found in a second run of the same batch"
    found = f"the loss is {loss:g}; the first numbers that are not finite: {place}"
    return DivergedError(f"iteration {state.iter}", found, remedy=_ADVICE)


def check_parameters(net: Net, iterations: int) -> None:
    """Refuse parameters that are not finite.

    Raises:
        DivergedError: naming the first.
    """
    if place := _in_parameters(net):
        raise DivergedError(f"after iteration {iterations - 1}", f"not finite: {place}", remedy=_ADVICE)


def _in_parameters(net: Net) -> str:
    for node, layer in net.nodes:
        for name, blob in zip(layer.blob_names, layer.caffe_blobs, strict=True):
            if found := _wrong(blob):
                return f"{found} in parameter {name} of layer {node.name} ({node.type}, {node.where})"
    return ""


class _FoundError(Exception):
    """Ends a pass at the first blob that is not finite."""


def _in_passes(net: Net, passes: int) -> str:
    for i in range(passes):
        blobs: dict[str, Tensor] = {}

        def check(index: int, blobs: dict[str, Tensor] = blobs) -> None:
            node = net.graph.nodes[index]
            for name in node.tops:
                if found := _wrong(blobs[name]):
                    raise _FoundError(f"{found} in blob {name} of layer {node.name} ({node.type}, {node.where})")

        try:
            net.executor.run(Mode.PLAIN, blobs, after=check)
        except _FoundError as found:
            return f"{found}, pass {i + 1} of {passes}" if passes > 1 else str(found)
    return ""


def _wrong(blob: Tensor) -> str:
    """How many numbers of a blob are nan or inf, as text; empty if all are finite."""
    if bool(torch.isfinite(blob).all()):
        return ""
    nans, count = int(torch.isnan(blob).sum()), blob.numel()
    infinite = int(torch.isinf(blob).sum())
    parts = [f"{n} {what}" for n, what in ((nans, "nan"), (infinite, "inf")) if n]
    return f"{' and '.join(parts)} among {count}"
