"""An exported ONNX file in onnxruntime, compared with the net."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.errors import CaffeError
from caffe_port.export.check import BOUNDS, Checked, check_runs
from caffe_port.export.onnx_write import outputs_added

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["check", "session"]


def session(path: str | os.PathLike) -> Any:
    """onnxruntime's session on the CPU, with its warnings off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def check(path: Path, net: Net, writer: Any, dtype: str, reference: str | os.PathLike | None) -> Checked:
    """Run the file and the net at two batch sizes and compare.

    Raises:
        CaffeError: an output's error exceeds the bound, against the net or the reference.
    """
    graph = writer.graph
    known = {v.name for v in writer.inputs}.union(graph.initializers)
    watched = [(node, blob, v) for node, pairs in writer.steps.items() for blob, v in pairs if v.name not in known]
    added = {v.name: graph.half and not v.single for *_, v in watched}
    names = [v.name for v in writer.outputs]
    runs = _giving(path, {name: half for name, half in added.items() if name not in names})
    names += [v.name for *_, v in watched]

    def run(feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        unique = [*dict.fromkeys(names)]
        made = []
        for feed in feeds:
            found = dict(zip(unique, _ran(runs.run, unique, feed), strict=True))
            made.append([found[name].astype(np.float32, copy=False) for name in names])
        return made

    return check_runs(
        net,
        writer.wanted,
        run,
        program="onnxruntime",
        bound=BOUNDS[dtype],
        dynamic_batch=writer.graph.dynamic_batch,
        dynamic_size=writer.graph.dynamic_size,
        inputs={v.name: v.shape for v in writer.inputs},
        reference=reference,
        feed=partial(_fed, writer),
        watched=[(node, blob) for node, blob, _ in watched],
    )


def _ran(function: Any, *arguments: Any) -> Any:
    """A call of onnxruntime, whose exceptions have no common class."""
    try:
        return function(*arguments)
    except Exception as error:
        said = " ".join(str(error).split())
        remedy = "--no-check writes the file without the check; please report the net"
        raise CaffeError("export", f"onnxruntime does not run the file: {said[:300]}", remedy=remedy) from None


def _giving(path: Path, more: Mapping[str, bool]) -> Any:
    """A session of the file that gives these values, too; the file stays as it is."""
    if not more:
        return _ran(session, path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(outputs_added(more))
    try:
        return _ran(session, path)
    finally:
        os.truncate(path, size)


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
