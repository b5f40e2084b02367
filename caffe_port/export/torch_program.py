"""A net as a file of torch.export, which runs without this package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from caffe_port.errors import CaffeError
from caffe_port.export.check import distance
from caffe_port.export.inputs import drawn_inputs
from caffe_port.formats.atomic import atomic_path, check_output

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["torch_program"]


def torch_program(
    net: Net, path: str | os.PathLike, *, dynamic_batch: bool = True, overwrite: bool = False, verify: bool = True
) -> None:
    """Write a net, in phase TEST, as ``torch.export.save`` does.

    The program takes the inputs by name, ``program.module()(data=x)``, and gives a dict of the outputs.

    Args:
        dynamic_batch: the first axis of the inputs may have any length, if the net allows it.
        verify: load the file and compare it with the net before it is kept.

    Raises:
        CaffeError: torch cannot export a layer, or the numbers differ. FileError: it cannot be written.
    """
    check_output(path, overwrite=overwrite)
    where = f"net {net.definition.net.name or net.definition.path}"
    if not net.graph.inputs:
        raise CaffeError(where, "no inputs", expected="a deploy definition, whose inputs are Input layers")
    given = drawn_inputs(net, None)
    shapes: Any = None
    if dynamic_batch:
        larger = {name: x.shape[0] + 1 for name, x in given.items() if x.dim()}
        given = drawn_inputs(net, max(max(larger.values(), default=2), 2)) if len(set(larger.values())) == 1 else given
        batch = torch.export.Dim("batch", min=1)
        shapes = {"inputs": {name: {0: batch} for name in given}} if len(set(larger.values())) == 1 else None
    try:
        program = _exported(net, given, shapes)
    except CaffeError:
        raise
    except Exception as error:
        line = next((row for row in str(error).splitlines() if row.strip()), type(error).__name__)
        found = f"torch.export: {line.strip()[:200]}"
        raise CaffeError(where, found, remedy="export to .onnx, or cut the net") from None
    with atomic_path(path, overwrite=overwrite) as temporary:
        named = temporary.with_suffix(".pt2")
        try:
            torch.export.save(program, named)
            if verify:
                _check(named, net, given)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


class _ByName(torch.nn.Module):
    """The net with its inputs as keyword arguments."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        tops: dict[str, torch.Tensor] = self.net(inputs)
        return tops


def _exported(net: Net, given: dict[str, torch.Tensor], shapes: Any) -> Any:
    with torch.no_grad():
        if shapes is not None:
            try:
                return torch.export.export(_ByName(net).eval(), (), given, dynamic_shapes=shapes, strict=False)
            except Exception:
                from caffe_port.console import info

                info("the batch size is fixed: a layer's form depends on it")
        return torch.export.export(_ByName(net).eval(), (), given, strict=False)


@torch.no_grad()
def _check(path: Any, net: Net, given: dict[str, torch.Tensor]) -> None:
    theirs = torch.export.load(path).module()(**given)
    ours = net(given)
    for name, top in ours.items():
        error = distance(theirs[name].numpy(), top.numpy())
        if not error <= 1e-5:
            raise CaffeError(
                f"export: output {name}",
                f"the program's numbers are off by {error:.1e} of the largest",
                expected="1e-05 at most; nothing was written",
            )
