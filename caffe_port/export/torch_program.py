"""A net as a file of torch.export, which runs without this package."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.console import info
from caffe_port.errors import CaffeError
from caffe_port.execution.executor import Mode
from caffe_port.execution.inputs import refuse_untraceable
from caffe_port.export.check import BOUNDS, Checked, Run, Watched, check_runs
from caffe_port.export.inputs import drawn_inputs, watched_bottoms
from caffe_port.export.parts import (
    Exported,
    Nodes,
    fixed_batch,
    needed_nodes,
    new_folder_beside,
    reset_shapes,
    title,
    wanted_outputs,
)
from caffe_port.export.source_code import python_name, unique
from caffe_port.formats.atomic import check_output

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["keywords", "torch_program"]


def torch_program(
    net: Net,
    path: str | os.PathLike,
    *,
    dynamic_batch: bool = True,
    outputs: Sequence[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    reference: str | os.PathLike | None = None,
) -> Exported:
    """Write a net, in phase TEST, as ``torch.export.save`` does.

    The program takes the inputs by name, ``program.module()(data=x)``, and gives a dict of the outputs. A name that is
    no identifier becomes one: the input ``cls-score-masked`` is ``cls_score_masked``.

    Args:
        dynamic_batch: the first axis of the inputs may have any length, if the net allows it.
        outputs: output blobs instead of the net's; layers that they do not need are omitted.
        verify: load the file and compare it with the net before it is kept.
        reference: an .npz of another Caffe's numbers to compare with as well (as ``parity`` takes it).

    Raises:
        CaffeError: torch cannot export a layer, or the numbers differ. FileError: it cannot be written.
    """
    check_output(path, overwrite=overwrite)
    target = Path(path)
    wanted = wanted_outputs(net, outputs)
    reset_shapes(net)
    nodes = needed_nodes(net, wanted)
    inputs = {b: net.shapes[b] for node, _ in nodes if node.type == "Input" for b in node.tops if b in net.graph.inputs}
    if not inputs:
        raise CaffeError(title(net), "no inputs", expected="a deploy definition, whose inputs are Input layers")
    refuse_untraceable(layer for _, layer in nodes)
    alike = len({shape[:1] for shape in inputs.values()}) == 1 and all(inputs.values())
    if dynamic_batch and (why := fixed_batch(net, nodes) or ("" if alike else "its inputs have several")):
        info(f"the batch size is fixed: {why}")
        dynamic_batch = False
    names = keywords(inputs)
    program, dynamic_batch = _exported(net, _ByName(net, nodes, wanted, names), dynamic_batch)
    result = Exported(
        str(target), list(inputs), wanted, sum(node.op == "call_function" for node in program.graph.nodes)
    )
    with new_folder_beside(str(target)) as folder:
        written = folder / f"{target.stem}.pt2"
        torch.export.save(program, written)
        if verify:
            result.checked = _checked(net, nodes, wanted, inputs, torch.export.load(written), dynamic_batch, reference)
        written.replace(target)
    return result


def _checked(
    net: Net,
    nodes: Nodes,
    wanted: Sequence[str],
    inputs: Mapping[str, tuple[int, ...]],
    program: Any,
    dynamic_batch: bool,
    reference: str | os.PathLike | None,
) -> Checked:
    """Compare the program with the net; where rounding decides between equals, also with what such layers read.

    That is a second program, with more outputs: only for a net whose outputs do not agree as they are.
    """
    names = keywords(inputs)

    def run(module: Any, feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        tops = [module(**{names[blob]: torch.from_numpy(a) for blob, a in feed.items()}) for feed in feeds]
        return [[top.detach().numpy() for top in found.values()] for found in tops]

    def compared(run: Run, watched: Watched) -> Checked:
        return check_runs(
            net,
            wanted,
            run,
            program="torch.export's program",
            bound=BOUNDS["fp32"],
            dynamic_batch=dynamic_batch,
            inputs=inputs,
            reference=reference,
            watched=watched,
        )

    module, watched = program.module(), watched_bottoms(nodes)
    try:
        return compared(partial(run, module), ())
    except CaffeError:
        if not watched:
            raise
    more = _exported(net, _ByName(net, nodes, wanted, names, watched), dynamic_batch)[0].module()

    def observed(feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        made, again = run(module, feeds), run(more, feeds)
        pairs = [pair for ours, theirs in zip(made, again, strict=True) for pair in zip(ours, theirs, strict=False)]
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            raise CaffeError("export", "other numbers in a second program", expected="the same; nothing was written")
        return again

    return compared(observed, watched)


def keywords(inputs: Iterable[str]) -> dict[str, str]:
    """The keyword of each input blob: torch's code for a program has them as names."""
    found: dict[str, str] = {}
    for blob in inputs:
        found[blob] = unique(python_name(blob, "input"), lambda name: name in found.values())
    return found


class _ByName(torch.nn.Module):
    """The nodes of a net, with the inputs as keyword arguments; it gives a dict of the wanted and the watched blobs.

    ``forward`` has a signature of its own: torch matches no shapes with the names in a ``**inputs``.
    """

    def __init__(
        self, net: Net, nodes: Nodes, wanted: Sequence[str], names: Mapping[str, str], watched: Watched = ()
    ) -> None:
        super().__init__()
        self.net, self.names = net, dict(names)
        indices = [node.index for node, _ in nodes]

        def forward(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            blobs = {blob: inputs[name] for blob, name in names.items()}
            seen: dict[str, torch.Tensor] = {}

            def look(i: int) -> None:
                seen.update({f"{i}/{blob}": blobs[blob].clone() for node, blob in watched if node == i})

            net.executor.run(Mode.PLAIN, blobs, indices, keep=wanted, before=look if watched else None)
            return {name: blobs[name] for name in wanted} | seen

        known = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names.values()]
        forward.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]
        self.forward = forward

    def given(self, batch: int | None) -> dict[str, torch.Tensor]:
        """Drawn inputs by keyword."""
        drawn = drawn_inputs(self.net, batch)
        return {name: drawn[blob] for blob, name in self.names.items()}


def _exported(net: Net, module: _ByName, dynamic: bool) -> tuple[Any, bool]:
    """The program, and whether its batch is dynamic."""
    module.eval()
    with torch.no_grad():
        if dynamic:
            batch = torch.export.Dim("batch", min=1)
            given = module.given(max(net.shapes[next(iter(module.names))][0] + 1, 2))
            try:
                shapes = {name: {0: batch} for name in given}
                return torch.export.export(module, (), given, dynamic_shapes=shapes, strict=False), True
            except Exception:  # torch raises errors of many kinds
                info("the batch size is fixed: a layer's form depends on it")
        try:
            return torch.export.export(module, (), module.given(None), strict=False), False
        except CaffeError:
            raise
        except Exception as error:
            line = next((row for row in str(error).splitlines() if row.strip()), type(error).__name__)
            found = f"torch.export: {line.strip()[:200]}"
            raise CaffeError(title(net), found, remedy="export to .onnx or .py, or cut the net") from None
