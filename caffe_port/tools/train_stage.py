"""Shared by the commands that train one of the paper's nets: start, training, and output of the weights."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from caffe_port.definitions import published
from caffe_port.errors import CaffeError
from caffe_port.formats import LayerWeights
from caffe_port.formats.adding import add_layers
from caffe_port.formats.atomic import check_output
from caffe_port.tools.cli import Parser
from caffe_port.tools.train import add_options, train

__all__ = ["PROTOTXT", "add_stage_options", "train_stage"]

PROTOTXT = published()
"""The published definitions."""


def add_stage_options(parser: Parser, output: str) -> None:
    """Adds -o for the weights, and the options of a training."""
    parser.add_output(default=output, help="the trained weights; default: %(default)s")
    add_options(parser)


def train_stage(
    arguments: argparse.Namespace,
    solver: Path,
    start: Callable[[Path], str] | None = None,
    *,
    what: str,
    fixed: Sequence[LayerWeights] = (),
) -> None:
    """Train with ``solver``; the weights are written to ``arguments.output`` when it is done, not when it was stopped.

    Args:
        start: writes the initial weights to the given path or finds them elsewhere, and returns their path. It is
            called unless the training is resumed.
        what: name of the net that is trained.
        fixed: layers that are added to the output if the trained net lacks them, since its data layer reads what they
            gave (``keep-features``).

    Raises:
        CaffeError: any error.
    """
    output = Path(arguments.output)
    check_output(output, overwrite=arguments.force or arguments.resume)
    if not solver.is_file():
        raise CaffeError(str(solver), "no such file", remedy="create it: caffe-port build -o DIR --width ...")
    arguments.solver = str(solver)
    if start is not None and not arguments.snapshot and not (arguments.resume and _has_started(arguments)):
        arguments.weights = start(output.with_name(f"{output.stem}_start.caffemodel"))
    trained = train(arguments)
    if not trained.group.first:
        return
    if trained.stopped:
        print(f"stopped before the end; the same command with --resume continues and writes {output}")
        return
    trained.net.save(output)
    add_layers(output, fixed)
    print(f"wrote {output}: {what}")


def _has_started(arguments: argparse.Namespace) -> bool:
    """Whether a snapshot exists."""
    from caffe_port.schema import read_solver

    param = read_solver(arguments.solver, proto=arguments.proto, settings=list(arguments.set))
    prefix = Path(param.snapshot_prefix)
    return any(prefix.parent.glob(f"{glob.escape(prefix.name)}_iter_*.resume"))
