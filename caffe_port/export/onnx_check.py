"""Comparison of an exported file, run in onnxruntime, with the net and with another Caffe's numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch

from caffe_port.errors import CaffeError

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["BOUNDS", "Checked", "check", "drawn_inputs", "session"]

BOUNDS = {"fp32": 1e-5, "fp16": 5e-3}
"""The largest error of an output, as a share of its largest value."""


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        worst: the output with the largest error, and ``error`` as a share of its largest value.
        batches: the batch sizes that were run. reference: the file of another Caffe's numbers, if one was compared.
    """

    worst: str
    error: float
    batches: tuple[int, ...]
    reference: str = ""

    def __str__(self) -> str:
        beside = f" and of {self.reference}" if self.reference else ""
        sizes = " and ".join(map(str, self.batches))
        return (
            f"onnxruntime gives the numbers of this net{beside}: worst output {self.worst}, "
            f"error {self.error:.1e} of its largest value (batches of {sizes})"
        )


def session(path: str | os.PathLike) -> Any:
    """onnxruntime's session on the CPU, with its warnings off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def drawn_inputs(net: Net, batch: int | None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for every input: like pixels minus their mean if it has a picture's shape, else around 0.

    Args:
        batch: length of the first axis; None: the definition's.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for name in net.graph.inputs:
        shape = net.shapes[name]
        if batch is not None and shape:
            shape = (batch, *shape[1:])
        limit = _index_limit(net, name)
        if limit:
            found[name] = torch.from_numpy(generator.integers(0, limit, shape).astype(np.float32))
            continue
        pixels = len(shape) == 4 and shape[1] in (1, 3)
        array = generator.normal(0, 60 if pixels else 1, shape)
        found[name] = torch.from_numpy(array.astype(np.float32))
    return found


def _index_limit(net: Net, name: str) -> int:
    """The number of possible values if a blob holds indices; 0 if it does not."""
    for node, layer in net.nodes:
        if name in node.bottoms:
            if node.type == "Split":
                return max(_index_limit(net, top) for top in node.tops)
            if node.type == "Embed":
                return int(layer.input_dim)
            if node.type == "BatchReindex" and node.bottoms[1] == name:
                return net.shapes[node.bottoms[0]][0]
            if node.type in ("Unpooling", "Upsample") and name in node.bottoms[1:]:
                return prod(net.shapes[node.tops[0]][2:])
    return 0


def check(path: Path, net: Net, writer: Any, dtype: str, reference: str | os.PathLike | None) -> Checked:
    """Run the file and the net at two batch sizes and compare.

    Raises:
        CaffeError: an output's error exceeds the bound, against the net or the reference.
    """
    runs = session(path)
    bound, graph = BOUNDS[dtype], writer.graph
    first = next((net.shapes[n][0] for n in net.graph.inputs if net.shapes[n]), 1)
    alike = all(net.shapes[n][:1] == (first,) for n in net.graph.inputs)
    batches = (first, first + 1) if graph.dynamic_batch and alike and net.graph.inputs else (first,)
    before = dict(net.shapes)
    worst, error = "", -1.0
    for batch in batches:
        given = drawn_inputs(net, batch if len(batches) > 1 else None, seed=batch)
        feed, given = _fed(writer, given)
        ours = _ours(net, given, writer.wanted)
        theirs = runs.run([v.name for v in writer.outputs], feed)
        for name, found in zip(writer.wanted, theirs, strict=True):
            now = distance(found, ours[name])
            if not now <= error:
                worst, error = name, now
    net.shapes.update(before)
    net._shaped_for = None
    if not error <= bound:
        raise CaffeError(
            f"export: output {worst}",
            f"onnxruntime's numbers are off by {error:.1e} of the largest",
            expected=f"{bound:.0e} at most; nothing was written",
            remedy="--no-check writes the file without the check; please report the net",
        )
    if reference is not None:
        _compare(runs, writer, reference, bound)
    return Checked(worst or "none", max(error, 0.0), batches, os.path.basename(reference) if reference else "")  # noqa: PTH119


def _fed(writer: Any, given: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The inputs of the file and of the net: where the file takes a picture, the net gets it preprocessed."""
    feed: dict[str, Any] = {}
    for value in writer.inputs:
        if not getattr(value, "picture", False):
            if value.name in given:
                feed[value.name] = given[value.name].numpy()
            continue
        p, name = writer.preprocessing, value.name
        n, channels = given[name].shape[:2]
        size = p.size or given[name].shape[2:]
        picture = np.random.default_rng(n).integers(0, 256, (n, *size, channels), np.uint8)
        x = torch.from_numpy(picture.transpose(0, 3, 1, 2).astype(np.float32))
        x = x.flip(1) if p.rgb else x
        mean = torch.tensor(list(p.mean) or [0.0]).view(1, -1, 1, 1)
        feed[name], given[name] = picture, (x - mean) * p.scale
    return feed, given


@torch.no_grad()
def _ours(net: Net, given: dict[str, torch.Tensor], wanted: list[str]) -> dict[str, Any]:
    for _, layer in net.nodes:
        for state in getattr(layer, "states", ()):  # a file starts every run from zeros
            getattr(layer, state).zero_()
    tops = net(given, blobs=wanted) if given else net(blobs=wanted)
    return {name: tops[name].numpy() for name in wanted}


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


def _compare(runs: Any, writer: Any, reference: str | os.PathLike, bound: float) -> None:
    """Compare with an .npz whose keys are in/BLOB and out/BLOB."""
    try:
        with np.load(reference, allow_pickle=False) as arrays:
            theirs = {key: arrays[key] for key in arrays.files if key.startswith(("in/", "out/"))}
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError) as fault:
        found = f"not an .npz of arrays ({fault})"
        raise CaffeError(os.fspath(reference), found, expected="in/BLOB and out/BLOB") from None
    inputs = {v.name: v.shape for v in writer.inputs}
    missing = [name for name in inputs if f"in/{name}" not in theirs]
    if missing:
        raise CaffeError(os.fspath(reference), f"no in/{missing[0]}", expected="every input of the net")
    feed = {name: theirs[f"in/{name}"].astype(np.float32).reshape(shape) for name, shape in inputs.items()}
    made = dict(zip(writer.wanted, runs.run([v.name for v in writer.outputs], feed), strict=True))
    compared = [name for name in writer.wanted if f"out/{name}" in theirs]
    if not compared:
        raise CaffeError(os.fspath(reference), "none of the net's outputs", expected=f"out/{writer.wanted[0]}")
    for name in compared:
        expected = theirs[f"out/{name}"]
        error = distance(made[name].reshape(expected.shape), expected)
        if not error <= bound:
            raise CaffeError(
                f"export: output {name}",
                f"onnxruntime's numbers are off by {error:.1e} from those of {reference}",
                expected=f"{bound:.0e} at most; nothing was written",
                remedy="caffe-port parity shows the first layer that differs",
            )
