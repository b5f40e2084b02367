"""train, test, time, device_query: Caffe's own commands with Caffe's own flags and log lines.

Source: tools/caffe.cpp (both programs).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.schema.messages import PHASES
from caffe_port.tools import train as training
from caffe_port.tools.cli import Parser, as_gflags, commas, print_json, read_options, run
from caffe_port.tools.commands import main

if TYPE_CHECKING:
    import torch

    from caffe_port.solver.log import Log

__all__ = ["benchmark", "device_query", "main", "score", "train"]

_GPUS = "device ids, such as 0 or 0,1, or all"


# -- train -------------------------------------------------------------------------------------------------------------


def train(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0 when done or stopped, 2 after an error."""
    parser = Parser("train", "Train or finetune a net.", example="--solver solver.prototxt")
    parser.add_argument("--solver", metavar="FILE", required=True, help="the solver's definition")
    parser.add_argument("--gpu", metavar="ID", default="", help=f"{_GPUS}; default: as solver_mode")
    training.add_options(parser)
    parser.reads("solver")
    run(_train, parser, as_gflags(argv))


def _train(arguments: argparse.Namespace) -> None:
    if arguments.gpu:
        gpus = _gpus(arguments.gpu)
        if len(gpus) > 1:
            run = f"torchrun --nproc_per_node={len(gpus)} -m caffe_port.solver {arguments.solver}"
            raise CaffeError("--gpu", f"{len(gpus)} devices", expected="one in this process", remedy=run)
        arguments.device = f"cuda:{gpus[0]}"
    training.train(arguments)


# -- test, time --------------------------------------------------------------------------------------------------------


def _net_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the net's definition")
    add("--iterations", metavar="N", type=int, default=50, help="how many passes; default: 50")
    add("--gpu", metavar="ID", default="", help=f"{_GPUS}; default: the CPU")
    add("--level", type=int, default=0, help="the net's level")
    add("--stage", metavar="A,B", default="", help="the net's stages")
    parser.reads("model")
    parser.add_json("print the results as one line of JSON on stdout")
    parser.add_quiet("no log")
    parser.add_dialect("which Caffe to behave as")


def score(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "test",
        "Score a net on the data that its data layers read.",
        example="--model net.prototxt --weights model.caffemodel --iterations 2",
    )
    parser.add_argument("--weights", metavar="A,B", required=True, help="its weights, of any format")
    _net_options(parser)
    parser.reads("weights", part=commas)
    run(_test, parser, as_gflags(argv))


def benchmark(argv: Sequence[str] | None = None) -> NoReturn:
    """The command ``time``; exits with 0, or 2 after an error."""
    parser = Parser("time", "Time a net, layer by layer.", example="--model net.prototxt --iterations 2 --phase TEST")
    parser.add_argument("--phase", choices=PHASES.values(), default="TRAIN", help="default: TRAIN")
    _net_options(parser)
    run(_time, parser, as_gflags(argv))


def _test(arguments: argparse.Namespace) -> None:
    import torch

    from caffe_port.solver.scores import Scores, scores

    log = _log(arguments)
    net = _net(arguments, "TEST", log).eval()
    _line(log, f"Running for {arguments.iterations} iterations.")
    inputs = {name: torch.zeros(net.shapes[name], device=net._like().device) for name in net.graph.inputs}
    sums: list[np.float32] = []
    loss = np.float32(0)
    found: list[Scores] = []
    for i in range(arguments.iterations):
        with torch.no_grad():
            batch_loss, outputs = net.losses(**inputs)
        loss += np.float32(batch_loss.item())
        found = scores(net, outputs)
        for s in found:
            _line(log, f"Batch {i}, {s.name} = {log.number(s.value)}")
        sums = [a + np.float32(s.value) for a, s in zip(sums or [np.float32(0)] * len(found), found, strict=True)]
    n = np.float32(arguments.iterations)
    _line(log, f"Loss: {log.number(float(loss / n))}")
    for s, total in zip(found, sums, strict=True):
        _line(log, f"{s.name} = {log.weighted(Scores(s.name, s.weight, float(total / n)))}")
    if arguments.json:
        outputs_mean: dict[str, list[float]] = {}
        for s, total in zip(found, sums, strict=True):
            outputs_mean.setdefault(s.name, []).append(float(total / n))
        print_json({"iterations": arguments.iterations, "loss": float(loss / n), "outputs": outputs_mean})


def _time(arguments: argparse.Namespace) -> None:
    log = _log(arguments)
    net = _net(arguments, arguments.phase, log)
    names = net._layer_names
    clock = _Clock(net)
    _line(log, "Performing Forward")
    _line(log, f"Initial loss: {log.number(net._forward(0, len(names) - 1))}")
    _line(log, "Performing Backward")
    net.backward()
    clock.reset()
    _line(log, "*** Benchmark begins ***")
    _line(log, f"Testing for {arguments.iterations} iterations.")
    start, totals = clock.now(), np.zeros(2)
    for i in range(arguments.iterations):
        begin = clock.now()
        net.forward()
        between = clock.now()
        net.backward()
        end = clock.now()
        totals += between - begin, end - between
        _line(log, f"Iteration: {i + 1} forward-backward time: {log.number(1000 * (end - begin))} ms.")
    whole, per = clock.now() - start, 1000 / arguments.iterations
    _line(log, "Average time per layer: ")
    for number, name in enumerate(names):
        for way in ("forward", "backward"):
            _line(log, f"{name:>10}\t{way}: {log.number(clock.spent[way][number] * per)} ms.")
    for way, total in zip(("Forward", "Backward"), totals, strict=True):
        _line(log, f"Average {way} pass: {log.number(total * per)} ms.")
    _line(log, f"Average Forward-Backward: {log.number(whole * per)} ms.")
    _line(log, f"Total Time: {log.number(whole * 1000)} ms.")
    _line(log, "*** Benchmark ends ***")
    if arguments.json:
        layers = [
            {"name": name, **{f"{way}_ms": clock.spent[way][number] * per for way in ("forward", "backward")}}
            for number, name in enumerate(names)
        ]
        forward, backward = (float(total * per) for total in totals)
        print_json(
            {"iterations": arguments.iterations, "forward_ms": forward, "backward_ms": backward, "layers": layers}
        )


class _Clock:
    """Seconds that each layer takes, by its number; a GPU is synchronized after each layer."""

    def __init__(self, net: Any) -> None:
        self._device: torch.device = net._like().device
        self._started = 0.0
        self.reset()
        for way in ("forward", "backward"):
            getattr(net, f"before_{way}")(self._begin)
            getattr(net, f"after_{way}")(lambda number, way=way: self._end(way, number))

    def reset(self) -> None:
        self.spent: dict[str, defaultdict[int, float]] = {way: defaultdict(float) for way in ("forward", "backward")}

    def now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _begin(self, number: int) -> None:
        self._started = self.now()

    def _end(self, way: str, number: int) -> None:
        self.spent[way][number] += self.now() - self._started


def _net(arguments: argparse.Namespace, phase: str, log: Log) -> Any:
    """The net, on its device, with its weights if it has any."""
    from caffe_port.pycaffe import Net

    if arguments.iterations < 1:
        raise CaffeError("--iterations", str(arguments.iterations), expected="1 or more")
    options = read_options(arguments)
    gpus = _gpus(arguments.gpu) if arguments.gpu else []
    _line(log, f"Use GPU with device ID {gpus[0]}" if gpus else "Use CPU.")
    weights = getattr(arguments, "weights", None)
    net = Net(
        arguments.model,
        phase=phase,
        weights=weights.split(",") if weights else None,
        level=arguments.level,
        stages=[s for s in arguments.stage.split(",") if s],
        **options,
    )
    return net.to(training.device_of(f"cuda:{gpus[0]}" if gpus else "cpu"))


# -- device_query ------------------------------------------------------------------------------------------------------


def device_query(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser("device-query", "Show the GPUs of this machine.", example="")
    parser.add_argument("--gpu", metavar="ID", default="all", help=f"{_GPUS}; default: all")
    parser.add_json("print a line of JSON for each GPU on stdout")
    parser.add_quiet("no log")
    run(_query, parser, as_gflags(argv))


def _query(arguments: argparse.Namespace) -> None:
    import torch

    log = _log(arguments)
    _line(log, f"Querying GPUs {arguments.gpu}")
    gpus = _gpus(arguments.gpu)
    if not gpus:
        _line(log, "torch finds no GPU here")
    for i in gpus:
        p = torch.cuda.get_device_properties(training.device_of(f"cuda:{i}"))
        for what, value in (
            ("Device id", i),
            ("Major revision number", p.major),
            ("Minor revision number", p.minor),
            ("Name", p.name),
            ("Total global memory", p.total_memory),
            ("Number of multiprocessors", p.multi_processor_count),
        ):
            log.line(f"{what + ':':31}{value}", "common.cpp")
        if arguments.json:
            facts = {"compute": f"{p.major}.{p.minor}", "memory": p.total_memory, "processors": p.multi_processor_count}
            print_json({"id": i, "name": p.name, **facts})


def _gpus(text: str) -> list[int]:
    """The device ids that --gpu names."""
    import torch

    if text == "all":
        return list(range(torch.cuda.device_count()))
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CaffeError("--gpu", repr(text), expected=_GPUS) from None


def _log(arguments: argparse.Namespace) -> Log:
    from caffe_port.pycaffe.mode import init_log
    from caffe_port.solver.log import Log

    if arguments.quiet:
        init_log(1)
    return Log()


def _line(log: Log, text: str) -> None:
    log.line(text, "caffe.cpp")


if __name__ == "__main__":
    main()
