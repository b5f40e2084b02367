"""An exported PyTorch file, run by a process that cannot import this package, compared with the net."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.export.check import BOUNDS, Checked, Watched, check_runs

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["check", "run_file"]

_RUN = """
import importlib.util, sys
sys.modules["caffe_port"] = None
import numpy, torch
path, given, made = sys.argv[1:]
spec = importlib.util.spec_from_file_location("exported", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
net = module.load()
found = {}
with numpy.load(given) as arrays, torch.no_grad():
    for run in range(1 + max(int(key.partition(".")[0]) for key in arrays.files)):
        inputs = [arrays[f"{run}.{i}"] for i in range(len(module.INPUTS))]
        tops = net(*map(torch.from_numpy, inputs))
        for i, top in enumerate(tops if isinstance(tops, tuple) else (tops,)):
            found[f"{run}.{i}"] = top.detach().numpy()
numpy.savez(made, **found)
"""
"""What the process does: imports the file, loads the weights beside it, runs the net on each set of inputs."""


def check(
    path: Path,
    net: Net,
    wanted: Sequence[str],
    inputs: Mapping[str, tuple[int, ...]],
    dtype: str,
    reference: str | os.PathLike | None,
    *,
    dynamic_batch: bool,
    watched: Watched = (),
    observed: Path | None = None,
) -> Checked:
    """Run the file and the net at two batch sizes and compare.

    Args:
        watched: blobs whose rounding decides between equals, see :func:`check_runs`.
        observed: a file beside with the same steps that gives them, too.

    Raises:
        CaffeError: the file does not run; an output's error exceeds the bound, against the net or the reference.
    """

    def run(feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        made = run_file(path, feeds, len(wanted))
        if observed is None:
            return made
        more = run_file(observed, feeds, len(wanted) + len(watched))
        pairs = [pair for ours, theirs in zip(made, more, strict=True) for pair in zip(ours, theirs, strict=False)]
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            raise CaffeError("export", "other numbers in a second run of the file", expected="the same")
        return more

    return check_runs(
        net,
        wanted,
        run,
        watched=watched,
        program="PyTorch",
        bound=BOUNDS[dtype],
        dynamic_batch=dynamic_batch,
        inputs=inputs,
        reference=reference,
    )


def run_file(path: Path, feeds: Sequence[Mapping[str, Any]], count: int) -> list[list[Any]]:
    """The file's ``count`` outputs for each set of inputs, which are in the order of its arguments."""
    given, made = (path.with_name(f"{path.stem}.{what}.npz") for what in ("given", "made"))
    arrays = {f"{run}.{i}": array for run, feed in enumerate(feeds) for i, array in enumerate(feed.values())}
    if not arrays:  # a net without inputs runs once
        arrays = {"0.none": np.zeros(0)}
    np.savez(given, **arrays)
    command = [sys.executable, "-I", "-c", _RUN, str(path), str(given), str(made)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    given.unlink()
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise CaffeError(
            "export",
            f"the file does not run: {last.strip()[:200]}",
            expected="outputs; nothing was written",
            remedy="--no-check writes the file without the check; please report the net",
        )
    with np.load(made) as found:
        results = [[found[f"{run}.{i}"] for i in range(count)] for run in range(max(len(feeds), 1))]
    made.unlink()
    return results
