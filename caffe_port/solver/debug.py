"""``debug_info``: the mean magnitude of every blob, parameter and diff, logged during a pass.

Source: net.cpp (both programs), ForwardDebugInfo, BackwardDebugInfo, UpdateDebugInfo, Backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.execution.executor import Mode
from caffe_port.net import Net
from caffe_port.solver.log import Log

__all__ = ["log_updates", "run"]

_SOURCE = "net.cpp"


def run(net: Net, log: Log, *, learns: bool) -> tuple[float, dict[str, Tensor]]:
    """A pass that is logged: the weighted sum of the losses and every output.

    Args:
        learns: whether to run backward too.
    """
    blobs: dict[str, Tensor] = {}
    passed: list[tuple[int, list[Tensor]]] = []

    def before(i: int) -> None:
        node = net.graph.nodes[i]
        if learns and net.needs.layer[i]:
            needed = zip(node.bottoms, net.needs.bottoms[i], strict=True)
            blobs.update((name, _watched(blobs[name], need)) for name, need in needed)
        passed.append((i, [blobs[name] for name in node.bottoms]))

    with torch.set_grad_enabled(learns):
        found = net.executor.run(
            Mode.TRAIN,
            blobs,
            as_caffe=net.gradients != "true",
            before=before,
            after=lambda i: _log_forward(net, i, blobs, log),
        )
    total = torch.zeros(()) if found is None else found
    if learns:
        total.backward()
        for i, bottoms in reversed(passed):
            _log_backward(net, i, bottoms, log)
        _log_norms(net, log)
    return total.item(), {name: blobs[name].detach() for name in net.graph.outputs}


def log_updates(net: Net, steps: dict[int, Tensor], log: Log) -> None:
    """Log the mean magnitude of each parameter and of what will be subtracted from it.

    Args:
        steps: by the parameter's id; what is missing is zero.
    """
    for name, display, blob in _parameters(net):
        step = _size(steps[id(blob)]) if id(blob) in steps else 0.0
        numbers = f"data: {log.number(_size(blob))}; diff: {log.number(step)}"
        log.line(f"    [Update] Layer {name}, param {display} {numbers}", _SOURCE)


def _watched(blob: Tensor, need: bool) -> Tensor:
    """A bottom that keeps its gradient, if one is needed."""
    if not need:
        return blob.detach()
    if not blob.requires_grad:
        return blob.detach().requires_grad_()
    blob.retain_grad()
    return blob


def _log_forward(net: Net, i: int, blobs: dict[str, Tensor], log: Log) -> None:
    node, layer = net.nodes[i]
    for name in node.tops:
        if name in net.loss_weights and not name.startswith("(automatic"):
            _log(log, "Forward", node.name, f"top blob {name} data", blobs[name])
    if not net.dialect.debug_logs_updates:
        for display, blob in zip(_displays(node, layer), layer.caffe_blobs, strict=True):
            _log(log, "Forward", node.name, f"param blob {display} data", blob)


def _log_backward(net: Net, i: int, bottoms: Sequence[Tensor], log: Log) -> None:
    node, layer = net.nodes[i]
    if not net.needs.layer[i]:
        return
    for name, bottom, need in zip(node.bottoms, bottoms, net.needs.bottoms[i], strict=True):
        if need:
            _log(log, "Backward", node.name, f"bottom blob {name} diff", bottom.grad)
    for j, (name, need) in enumerate(zip(layer.blob_names, net.needs.params[i], strict=True)):
        if need:
            _log(log, "Backward", node.name, f"param blob {j} diff", layer.diff(name))


def _log_norms(net: Net, log: Log) -> None:
    if net.dialect.debug_logs_updates:
        return
    blobs = [blob for _, _, blob in _parameters(net)]
    norms = [
        ", ".join(
            log.number(_norm([t for t in side if t is not None], order)) for side in (blobs, [b.grad for b in blobs])
        )
        for order in (1, 2)
    ]
    text = f"L1 norm = ({norms[0]}); L2 norm = ({norms[1]})"
    log.line(f"    [Backward] All net params (data, diff): {text}", _SOURCE, "E")


def _norm(tensors: Sequence[Tensor], order: int) -> float:
    return float(torch.tensor([float(torch.linalg.vector_norm(t.detach(), order)) for t in tensors]).norm(order))


def _parameters(net: Net) -> Iterator[tuple[str, str, Tensor]]:
    """Every parameter once: its layer, how Caffe shows it, itself."""
    seen: set[int] = set()
    for node, layer in net.nodes:
        for display, name in zip(_displays(node, layer), layer.blob_names, strict=True):
            blob = layer.aliases.get(name, getattr(layer, name))
            if id(blob) not in seen:
                seen.add(id(blob))
                yield node.name, display, blob


def _displays(node: Any, layer: Any) -> list[str]:
    """A parameter shows as the name that it is shared by, else as its number."""
    names = [spec.name for spec in node.message.param] + [""] * len(layer.blob_names)
    return [name or str(j) for j, name in enumerate(names[: len(layer.blob_names)])]


def _log(log: Log, way: str, layer: str, what: str, numbers: Tensor | None) -> None:
    size = 0.0 if numbers is None else _size(numbers)
    log.line(f"    [{way}] Layer {layer}, {what}: {log.number(size)}", _SOURCE)


def _size(numbers: Tensor) -> float:
    """The mean magnitude."""
    return float(numbers.detach().abs().double().mean())
