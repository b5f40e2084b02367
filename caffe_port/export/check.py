"""Comparison of what was exported, run by another program, with the net and with another Caffe's numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch

from caffe_port.errors import CaffeError
from caffe_port.execution.executor import Mode
from caffe_port.export.inputs import drawn_inputs

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["BOUNDS", "Agreement", "Checked", "Run", "Watched", "check_runs", "distance"]

BOUNDS = {"fp32": 1e-5, "fp16": 5e-3}
"""The largest error of an output, as a share of its largest value."""

Run = Callable[[Sequence[Mapping[str, Any]]], list[list[Any]]]
"""Runs an exported file on several sets of inputs, arrays by blob; gives for each the outputs in the file's order."""
Feed = Callable[[dict[str, torch.Tensor]], tuple[dict[str, Any], dict[str, torch.Tensor]]]
"""From drawn inputs of a net to those of the file and those of the net."""


Watched = Sequence[tuple[int, str]]
"""Blobs, each with the index of a node that reads it."""


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        worst: the output with the largest error, and ``error`` as a share of its largest value.
        batches: the batch sizes that were run. reference: the file of another Caffe's numbers, if one was compared.
        program: what ran the file.
    """

    worst: str
    error: float
    batches: tuple[int, ...]
    reference: str = ""
    program: str = "onnxruntime"

    def __str__(self) -> str:
        beside = f" and of {self.reference}" if self.reference else ""
        sizes = " and ".join(map(str, self.batches))
        return (
            f"{self.program} gives the numbers of this net{beside}: worst output {self.worst}, "
            f"error {self.error:.1e} of its largest value (batches of {sizes})"
        )


@dataclass(frozen=True)
class Agreement:
    """How an 8-bit file compares with the float one.

    Attributes:
        calibrated, compared: the numbers of pictures. apart: whether they are different pictures.
        labels: by output with classes along axis 1, the share of equal labels. objects: by output of a detector, the
            share of its objects with scores over a half that are found again.
        errors: by other output, the mean difference as a share of the largest value.
    """

    calibrated: int
    compared: int
    apart: bool
    labels: dict[str, float]
    objects: dict[str, float]
    errors: dict[str, float]

    def __str__(self) -> str:
        which = "others" if self.apart else "the same"
        said = [f"{name}: {share:.2%} of the labels equal" for name, share in self.labels.items()]
        said += [f"{name}: {share:.2%} of the objects found again" for name, share in self.objects.items()]
        said += [f"{name}: off by {error:.1%} of its largest value on average" for name, error in self.errors.items()]
        return f"8 bits, calibrated on {self.calibrated} pictures; on {self.compared} {which} {'; '.join(said)}"


def check_runs(
    net: Net,
    wanted: Sequence[str],
    run: Run,
    *,
    program: str,
    bound: float,
    dynamic_batch: bool,
    dynamic_size: bool = False,
    inputs: Mapping[str, tuple[int, ...]],
    reference: str | os.PathLike | None = None,
    feed: Feed | None = None,
    watched: Watched = (),
) -> Checked:
    """Run a file and the net on drawn inputs at two batch sizes and compare.

    Where a layer's tops change in steps (labels, switches, objects in the order of their scores), rounding alone may
    decide between two equals, and an exponential of large numbers makes their rounding larger. There the file's bottoms
    are compared and the net goes on with them.

    Args:
        wanted: the file's outputs. program: what runs it, for errors. bound: the largest error.
        dynamic_batch: run another batch size too, where all inputs have the same one.
        dynamic_size: the reference may have other heights and widths.
        inputs: the shapes of the file's inputs. reference: an .npz of another Caffe's numbers, compared as well.
        watched: the bottoms of such layers, which ``run`` gives behind the outputs.

    Raises:
        CaffeError: an output's error exceeds the bound, against the net or the reference; or the reference cannot be
            read, or lacks the net's inputs or outputs.
    """
    free = ([0] if dynamic_batch else []) + ([2, 3] if dynamic_size else [])
    theirs = _read_reference(reference, inputs, wanted, free) if reference is not None else {}
    first = next((net.shapes[n][0] for n in net.graph.inputs if net.shapes[n]), 1)
    alike = all(net.shapes[n][:1] == (first,) for n in net.graph.inputs)
    batches = (first, first + 1) if dynamic_batch and alike and net.graph.inputs else (first,)
    before, feeds, drawn = dict(net.shapes), list[Mapping[str, Any]](), list[dict[str, torch.Tensor]]()
    for batch in batches:
        given = drawn_inputs(net, batch if len(batches) > 1 else None, seed=batch)
        fed, given = feed(given) if feed else ({name: given[name].numpy() for name in inputs}, given)
        feeds.append(fed)
        drawn.append(given)
    if theirs:
        feeds.append({name: theirs[f"in/{name}"] for name in inputs})
    made = run(feeds)
    worst, error = "", -1.0
    for outputs, given in zip(made, drawn, strict=False):
        for name, now in _errors(net, given, wanted, outputs, watched):
            if not now <= error:
                worst, error = name, now
    net.shapes.update(before)
    net._shaped_for = None
    if not error <= bound:
        raise CaffeError(
            f"export: output {worst}",
            f"{program}'s numbers are off by {error:.1e} of the largest",
            expected=f"{bound:.0e} at most; nothing was written",
            remedy="--no-check writes the file without the check; please report the net",
        )
    for name, found in zip(wanted, made[-1] if theirs else (), strict=False):
        if f"out/{name}" in theirs:
            _compare(name, found, theirs[f"out/{name}"], program, bound, str(reference))
    return Checked(worst or "none", max(error, 0.0), batches, Path(reference).name if reference else "", program)


@torch.no_grad()
def _errors(
    net: Net, given: dict[str, torch.Tensor], wanted: Sequence[str], outputs: Sequence[Any], watched: Watched
) -> list[tuple[str, float]]:
    """The error of each watched blob and of each output."""
    for _, layer in net.nodes:
        for state in getattr(layer, "states", ()):  # a file starts every run from zeros
            getattr(layer, state).zero_()
    blobs, errors = dict(given), list[tuple[str, float]]()

    def go_on_with(i: int) -> None:
        for (node, blob), found in zip(watched, outputs[len(wanted) :], strict=True):
            if node == i:
                errors.append((blob, distance(found, blobs[blob].numpy())))
                blobs[blob] = torch.from_numpy(found)

    net.reshape_for({name: tuple(x.shape) for name, x in given.items()})
    net.executor.run(Mode.INFER, blobs, keep=wanted, before=go_on_with if watched else None)
    pairs = zip(wanted, outputs, strict=False)
    return errors + [(name, distance(found, blobs[name].numpy())) for name, found in pairs]


def distance(found: Any, expected: Any) -> float:
    """The largest difference as a share of the largest value; NaN must be NaN in both."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    off = np.abs(found.astype(np.float64)[~same] - expected[~same])
    return float(off.max(initial=0.0) / (scale or 1.0)) if np.isfinite(off).all() else float("inf")


def _read_reference(
    path: str | os.PathLike, inputs: Mapping[str, tuple[int, ...]], wanted: Sequence[str], free: Sequence[int]
) -> dict[str, Any]:
    """The arrays of an .npz whose keys are in/BLOB and out/BLOB; inputs have the file's shape but for ``free`` axes."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key.startswith(("in/", "out/"))}
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError):
        raise CaffeError(os.fspath(path), "not an .npz of arrays", expected="in/BLOB and out/BLOB") from None
    for name, shape in inputs.items():
        array = found.get(f"in/{name}")
        if array is None:
            raise CaffeError(os.fspath(path), f"no in/{name}", expected="every input of the net")
        alike = len(array.shape) == len(shape) and all(
            a == b or i in free for i, (a, b) in enumerate(zip(array.shape, shape, strict=True))
        )
        if not alike and array.size != prod(shape):
            raise CaffeError(os.fspath(path), f"in/{name} of shape {array.shape}", expected=str(shape))
        found[f"in/{name}"] = np.ascontiguousarray(array, np.float32).reshape(array.shape if alike else shape)
    if not any(f"out/{name}" in found for name in wanted):
        raise CaffeError(os.fspath(path), "none of the net's outputs", expected=f"out/{wanted[0]}")
    return found


def _compare(name: str, found: Any, expected: Any, program: str, bound: float, reference: str) -> None:
    """Raise for an output that is not another Caffe's."""
    same = found.size == expected.size
    error = distance(found.reshape(expected.shape), expected) if same else float("inf")
    if not error <= bound:
        raise CaffeError(
            f"export: output {name}",
            f"{program}'s numbers are off by {error:.1e} from those of {reference}",
            expected=f"{bound:.0e} at most; nothing was written",
            remedy="caffe-port parity shows the first layer that differs",
        )
