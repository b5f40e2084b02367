"""caffe-port: Caffe's own command (train, test, time, device_query) with Caffe's own flags, and all other commands.

Source: tools/caffe.cpp (both programs).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.errors import CaffeError, nearest
from caffe_port.tools import train as training
from caffe_port.tools.cli import Parser, run

if TYPE_CHECKING:
    import torch

    from caffe_port.solver.log import Log

__all__ = ["main"]

_OTHERS = {
    "caffe2torch": "Caffe's weights as a file of PyTorch",
    "torch2caffe": "A file of PyTorch as Caffe's weights",
    "parity": "A net beside what another Caffe computed, layer by layer",
    "make-shapes": "Pictures with masks, drawn, to try everything on",
    "prepare": "Training lists from a folder of Pascal VOC",
    "train-classifier": "The classification net under DecoupledNet, from image-level labels",
    "fp-bp": "A classification net's weights for the net that holds its backward pass",
    "train-segmentation": "DecoupledNet's segmentation net, from masks",
    "fold": "Batch statistics into scale and shift, for inference",
    "segment": "Masks for pictures, by a trained net",
    "evaluate": "Mean IoU as Pascal VOC counts it",
    "experiment": "Table 1 of the paper: every system at every level of annotation",
}
_ELSEWHERE = {"experiment": "caffe_port.segmentation.experiment.__main__"}
_GPUS = "device ids, such as 0 or 0,1, or all"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "-help"):
        print(_usage())
        sys.exit(0)
    name, *rest = arguments
    if (other := name.replace("_", "-")) in _OTHERS:
        module = _ELSEWHERE.get(other, f"caffe_port.tools.{other.replace('-', '_')}")
        importlib.import_module(module).main(rest)
        sys.exit(0)
    if name not in _BREWS:
        near = nearest(name, (*_BREWS, *_OTHERS))
        print(
            f"caffe-port: error: no command {name!r}"
            + (f" (near: {near})" if near else "")
            + "; see caffe-port --help",
            file=sys.stderr,
        )
        sys.exit(2)
    does, description, options = _BREWS[name]
    parser = Parser(f"caffe-port {name}", description)
    options(parser)
    run(does, parser, training.as_gflags(rest))


def _usage() -> str:
    lines = [(name, description) for name, (_, description, _) in _BREWS.items()] + list(_OTHERS.items())
    listed = "\n".join(f"  {name:20}{description.rstrip('.')}" for name, description in lines)
    return f"usage: caffe-port COMMAND [ARGUMENTS]\n\ncommands:\n{listed}\n\ncaffe-port COMMAND --help tells more"


# -- train -------------------------------------------------------------------------------------------------------------


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solver", metavar="FILE", required=True, help="the solver's definition")
    parser.add_argument("--gpu", metavar="ID", default="", help=f"{_GPUS}; default: what solver_mode says")
    training.add_options(parser)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.gpu:
        gpus = _gpus(arguments.gpu)
        if len(gpus) > 1:
            run = f"torchrun --nproc_per_node={len(gpus)} -m caffe_port.solver {arguments.solver}"
            raise CaffeError("--gpu", f"{len(gpus)} devices", expected="one in this process", remedy=run)
        arguments.device = f"cuda:{gpus[0]}"
    training.train(arguments)


# -- test, time --------------------------------------------------------------------------------------------------------


def _net_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the net's definition")
    add("--iterations", metavar="N", type=int, default=50, help="how many passes; default: 50")
    add("--gpu", metavar="ID", default="", help=f"{_GPUS}; default: the CPU")
    add("--level", type=int, default=0, help="the net's level")
    add("--stage", metavar="A,B", default="", help="the net's stages")
    add("--dialect", choices=("bvlc", "noh"), help="which Caffe to be; default: found out")
    add("--proto", metavar="FILE", help="another Caffe's caffe.proto, whose fields are then known")
    add("--plugin", metavar="FILE", action="append", default=[], help="Python file with @layer classes")
    add("--python-layers", action="store_true", help="run the code that Python layers name")


def _test_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="A,B", required=True, help="its weights, of any format")
    _net_options(parser)


def _time_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--phase", choices=("TRAIN", "TEST"), default="TRAIN", help="default: TRAIN")
    _net_options(parser)


def _test(arguments: argparse.Namespace) -> None:
    import torch

    from caffe_port.solver.log import Log
    from caffe_port.solver.solver import Scores, scores

    log = Log()
    net = _net(arguments, "TEST", log).eval()
    _say(log, f"Running for {arguments.iterations} iterations.")
    inputs = {name: torch.zeros(net.shapes[name], device=net._device()) for name in net.graph.inputs}
    sums: list[np.float32] = []
    loss = np.float32(0)
    found: list[Scores] = []
    for i in range(arguments.iterations):
        with torch.no_grad():
            batch_loss, outputs = net.losses(**inputs)
        loss += np.float32(batch_loss.item())
        found = scores(net, outputs)
        for s in found:
            _say(log, f"Batch {i}, {s.name} = {log.number(s.value)}")
        sums = [a + np.float32(s.value) for a, s in zip(sums or [np.float32(0)] * len(found), found, strict=True)]
    n = np.float32(arguments.iterations)
    _say(log, f"Loss: {log.number(float(loss / n))}")
    for s, total in zip(found, sums, strict=True):
        _say(log, f"{s.name} = {log.weighted(Scores(s.name, s.weight, float(total / n)))}")


def _time(arguments: argparse.Namespace) -> None:
    from caffe_port.solver.log import Log

    log = Log()
    net = _net(arguments, arguments.phase, log)
    names = net._layer_names
    clock = _Clock(net)
    _say(log, "Performing Forward")
    _say(log, f"Initial loss: {log.number(net._forward(0, len(names) - 1))}")
    _say(log, "Performing Backward")
    net.backward()
    clock.reset()
    _say(log, "*** Benchmark begins ***")
    _say(log, f"Testing for {arguments.iterations} iterations.")
    start, totals = clock.now(), np.zeros(2)
    for i in range(arguments.iterations):
        begin = clock.now()
        net.forward()
        between = clock.now()
        net.backward()
        end = clock.now()
        totals += between - begin, end - between
        _say(log, f"Iteration: {i + 1} forward-backward time: {log.number(1000 * (end - begin))} ms.")
    whole, per = clock.now() - start, 1000 / arguments.iterations
    _say(log, "Average time per layer: ")
    for number, name in enumerate(names):
        for way in ("forward", "backward"):
            _say(log, f"{name:>10}\t{way}: {log.number(clock.spent[way][number] * per)} ms.")
    for way, total in zip(("Forward", "Backward"), totals, strict=True):
        _say(log, f"Average {way} pass: {log.number(total * per)} ms.")
    _say(log, f"Average Forward-Backward: {log.number(whole * per)} ms.")
    _say(log, f"Total Time: {log.number(whole * 1000)} ms.")
    _say(log, "*** Benchmark ends ***")


class _Clock:
    """Seconds that each layer takes, by its number; a GPU's work is waited for."""

    def __init__(self, net: Any) -> None:
        self._device: torch.device = net._device()
        self._begun = 0.0
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
        self._begun = self.now()

    def _end(self, way: str, number: int) -> None:
        self.spent[way][number] += self.now() - self._begun


def _net(arguments: argparse.Namespace, phase: str, log: Log) -> Any:
    """The net, on its device, with its weights if it has any."""
    from caffe_port.pycaffe import Net
    from caffe_port.schema.plugins import allow_python_layers, load_plugin

    if arguments.iterations < 1:
        raise CaffeError("--iterations", str(arguments.iterations), expected="1 or more")
    for plugin in arguments.plugin:
        load_plugin(plugin)
    if arguments.python_layers:
        allow_python_layers()
    gpus = _gpus(arguments.gpu) if arguments.gpu else []
    _say(log, f"Use GPU with device ID {gpus[0]}" if gpus else "Use CPU.")
    weights = getattr(arguments, "weights", None)
    net = Net(
        arguments.model,
        phase=phase,
        weights=weights.split(",") if weights else None,
        level=arguments.level,
        stages=[s for s in arguments.stage.split(",") if s],
        dialect=arguments.dialect,
        proto=arguments.proto,
    )
    return net.to(training.device_of(f"cuda:{gpus[0]}" if gpus else "cpu"))


# -- device_query ------------------------------------------------------------------------------------------------------


def _query_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="ID", default="all", help=f"{_GPUS}; default: all")


def _query(arguments: argparse.Namespace) -> None:
    import torch

    from caffe_port.solver.log import Log

    log = Log()
    _say(log, f"Querying GPUs {arguments.gpu}")
    gpus = _gpus(arguments.gpu)
    if not gpus:
        _say(log, "torch finds no GPU here")
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


def _gpus(text: str) -> list[int]:
    """The device ids that --gpu names."""
    import torch

    if text == "all":
        return list(range(torch.cuda.device_count()))
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CaffeError("--gpu", repr(text), expected=_GPUS) from None


def _say(log: Log, text: str) -> None:
    log.line(text, "caffe.cpp")


_Brew = tuple[Callable[[argparse.Namespace], None], str, Callable[[argparse.ArgumentParser], None]]

_BREWS: dict[str, _Brew] = {
    "train": (_train, "Train or finetune a net.", _train_options),
    "test": (_test, "Score a net.", _test_options),
    "device_query": (_query, "Show what GPUs there are.", _query_options),
    "time": (_time, "Time a net, layer by layer.", _time_options),
}

if __name__ == "__main__":
    main()
