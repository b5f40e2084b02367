"""python -m caffe_port.solver: trains as Caffe trains."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caffe_port.errors import CaffeError, FileError
from caffe_port.tools.cli import FOLDER, Parser, as_gflags, commas, read_options, run

if TYPE_CHECKING:
    import torch

    from caffe_port.solver.solver import Solver

__all__ = ["add_options", "device_of", "main", "train"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0 when done or stopped, 2 after an error."""
    parser = Parser(
        "train",
        "Train a net as Caffe does. Ctrl-C writes a snapshot and stops; the same command with --resume continues.",
        prog="python -m caffe_port.solver",
        example="solver.prototxt",
    )
    parser.add_argument("solver", metavar="SOLVER.prototxt", help="the solver's definition")
    add_options(parser)
    parser.reads("solver")
    run(_train, parser, as_gflags(argv))


def _train(arguments: argparse.Namespace) -> None:
    train(arguments)


def add_options(parser: Parser) -> None:
    """Adds the options of a training."""
    from caffe_port.solver.signals import EFFECTS

    add = parser.add_argument
    begin = parser.add_argument_group("start")
    start = begin.add_mutually_exclusive_group()
    start.add_argument("--snapshot", metavar="FILE", help=".solverstate or .solverstate.h5, ours or real Caffe's")
    start.add_argument(
        "--resume",
        action="store_true",
        help="from the newest complete snapshot of snapshot_prefix, or from the start if there is none",
    )
    begin.add_argument(
        "--weights", metavar="A,B", help="initial weights, of any format; with --resume, if no snapshot exists"
    )
    begin.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="replaces a field of the definition"
    )
    begin.add_argument("--level", type=int, help="the training net's level")
    begin.add_argument("--stage", metavar="A,B", help="the training net's stages")
    parser.reads("snapshot")
    parser.reads("weights", part=commas)
    parser.writes("log_dir", kind=FOLDER)
    parser.writes("plot")
    parser.add_dialect("which Caffe to behave as")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, auto; default: as solver_mode, if available")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of convolutions and products; default: fp32")
    add(
        "--gradients",
        choices=("caffe", "true"),
        default="caffe",
        help="gradients where in-place layers overwrite what others read backward: Caffe's or true; default: caffe",
    )
    add("--channels-last", action="store_true", help="store images with channels last")
    add("--keep-going", action="store_true", help="continue when the loss is NaN, as Caffe does")
    add("--log-dir", metavar="DIR", help="write train.csv, test.csv and TensorBoard's events there")
    add("--plot", metavar="FILE.png", help="draw loss, rate and scores at every snapshot and at the end")
    for name, effect in (("sigint", "stop"), ("sighup", "snapshot")):
        what = "Ctrl-C" if name == "sigint" else "a hang-up"
        add(f"--{name}-effect", choices=EFFECTS, default=effect, help=f"effect of {what}; default: {effect}")


def train(arguments: argparse.Namespace) -> Solver:
    """Trains with these options; returns the solver, done or stopped.

    Raises:
        CaffeError: any error; it names the snapshot to resume from, if there is one.
    """
    if arguments.snapshot and arguments.weights:
        raise CaffeError(
            "--snapshot and --weights", "both", expected="one: a snapshot to resume from, or weights to finetune"
        )
    from caffe_port.solver.signals import Signals

    solver = build(arguments)
    if solver.group.first:
        _add_callbacks(solver, arguments)
    solver.log.line("Starting Optimization", "caffe.cpp")
    with Signals(arguments.sigint_effect, arguments.sighup_effect) as signals, _rescued(solver):
        solver.requested = signals.requested
        solver.solve()
    solver.log.line("Optimization Done.", "caffe.cpp")
    solver.group.leave()
    return solver


def _add_callbacks(solver: Solver, arguments: argparse.Namespace) -> None:
    from caffe_port.solver.metrics import Metrics
    from caffe_port.solver.plot import Plot
    from caffe_port.solver.progress import Bar

    if sys.stderr.isatty():
        solver.callbacks.append(Bar())
    if arguments.log_dir or arguments.plot:
        metrics = Metrics(arguments.log_dir)
        solver.callbacks.append(metrics)
        if arguments.plot:
            solver.callbacks.append(Plot(arguments.plot, metrics))


def build(arguments: argparse.Namespace) -> Solver:
    """The solver, restored from its snapshot or weights."""
    from caffe_port.schema import read_solver
    from caffe_port.solver import Solver
    from caffe_port.solver.distributed import join
    from caffe_port.solver.log import Log

    options = read_options(arguments)
    param = read_solver(arguments.solver, proto=arguments.proto, settings=_settings(arguments))
    group = join(device_of(arguments.device or ("auto" if param.solver_mode == param.GPU else "cpu")))
    if not group.first:
        os.environ["GLOG_minloglevel"] = "1"  # only one process logs
    log, device = Log(), group.device
    state = _state(arguments, param, log)
    if state:
        param.ClearField("weights")
    elif arguments.weights:
        param.weights[:] = [arguments.weights]
    log.line("Use CPU." if device.type == "cpu" else f"Using GPUs {device.index or 0}", "caffe.cpp")
    solver = Solver(
        param,
        path=arguments.solver,
        **options,
        device=device,
        log=log,
        keep_going=arguments.keep_going,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        gradients=arguments.gradients,
        group=group,
    )
    if state:
        log.line(f"Resuming from {state}", "caffe.cpp")
        solver.restore(state)
    return solver


def _settings(arguments: argparse.Namespace) -> list[str]:
    settings = list(arguments.set)
    if arguments.level is not None:
        settings.append(f"train_state.level={arguments.level}")
    if arguments.stage:
        settings.append(f"train_state.stage={arguments.stage}")
    return settings


def _state(arguments: argparse.Namespace, param: Any, log: Any) -> Path | None:
    """The snapshot to resume from, if there is one."""
    if arguments.snapshot:
        return Path(arguments.snapshot)
    if not arguments.resume:
        return None
    from caffe_port.solver.snapshot import latest

    state = latest(param.snapshot_prefix)
    if state is None:
        _refuse_others(Path(param.snapshot_prefix))
        log.line(f"No complete snapshot {param.snapshot_prefix}_iter_*: starting from the beginning", "caffe.cpp")
    return state


def _refuse_others(prefix: Path) -> None:
    """Refuses to start from the beginning over snapshots that are damaged or real Caffe's.

    Raises:
        FileError: such snapshots exist.
    """
    for state in sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}_iter_*.solverstate*")):
        raise FileError(
            str(state),
            "a snapshot that may be incomplete: it has no valid resume file",
            expected="a snapshot with its resume file",
            remedy="resume from it with --snapshot, or move it away to start from the beginning",
        )


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if torch has one.

    Raises:
        CaffeError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CaffeError("--device", name, expected="cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} GPUs usable by torch"
        raise CaffeError(f"--device {name}", found, remedy="--device cpu, or torch for CUDA")
    return device


@contextmanager
def _rescued(solver: Solver) -> Iterator[None]:
    """After an error inside, writes a snapshot if work would be lost, and adds to the error how to resume."""
    try:
        yield
    except Exception as error:
        try:
            state = solver.rescue()
        except CaffeError:  # the disk is full, or values are NaN: the existing snapshot remains the last
            state = solver.saved[1] if solver.saved else None
        if state is None:
            raise
        advice = f"resume with --snapshot {state}"
        if isinstance(error, CaffeError):
            raise error.advised(advice) from error
        if isinstance(error, OSError):
            raise FileError(str(error.filename or solver.path), error.strerror or str(error), remedy=advice) from error
        solver.log.line(advice, "caffe.cpp", "E")
        raise
