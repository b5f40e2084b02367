"""An exported ONNX file in onnxruntime, compared with the net."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.export.check import BOUNDS, Checked, check_runs

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
    runs = session(path)

    def run(feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        return [runs.run([v.name for v in writer.outputs], feed) for feed in feeds]

    return check_runs(
        net,
        writer.wanted,
        run,
        program="onnxruntime",
        bound=BOUNDS[dtype],
        dynamic_batch=writer.graph.dynamic_batch,
        inputs={v.name: v.shape for v in writer.inputs},
        reference=reference,
        feed=partial(_fed, writer),
    )


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
