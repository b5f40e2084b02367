"""Every layer at a realistic size, compared with the same arithmetic in plain PyTorch and with OpenCV's Caffe importer.

    python benchmarks/layers.py [--rounds 15] [--threads 2] [--only WORD] [--markdown] [--cpu-time] [--against DIR]

A row is a net of one layer (benchmarks/layer_rows.py, fork_rows.py, detection_rows.py). Values and gradients are
checked against plain PyTorch's before anything is timed; a few layers, which choose or count, have no such baseline.
Then, round by round, each benchmark in turn, every time after a run that is not counted:

    forward   the layer and the plain function without gradients
    both      forward and backward: the gradients of every bottom that has one and of every parameter
    net       the whole net without gradients, as users run it; and OpenCV, where it can read the net

A ratio is ours by plain, the median of the rounds' ratios and, in brackets, that of the fastest runs. A measurement for
which threads had to wait for a processor is repeated up to four times, and the least disturbed is used. ``floor`` is
the lower bound of the forward pass: a copy of as many bytes as it reads and writes, or its multiplications at the speed
of a large matrix product.

``--cpu-time`` counts the processor's time instead of the clock's, on one thread: for a machine with other load.
``--against`` compares with the same rows of another commit's checkout: both programs run three times in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from tqdm import tqdm  # noqa: E402

import caffe_port  # noqa: E402
from benchmarks import detection_rows, fork_rows, layer_rows  # noqa: E402
from benchmarks.layer_rows import Row  # noqa: E402
from caffe_port.execution.memory import keep_memory  # noqa: E402
from caffe_port.tools.cli import table  # noqa: E402

Run = Callable[[], Any]
Clock = Callable[[], float]

SHORTEST = 1e-3
"""The shortest measurement in seconds: shorter work is repeated within it."""

TOLERANCE = 1e-3
"""Bounds of the differences of values and gradients from plain PyTorch's, as a share of the largest value."""


@dataclass
class Contestant:
    """Something to time. ``seconds`` has a number for each round."""

    run: Run
    clock: Clock
    times: int = 1
    seconds: list[float] = field(default_factory=list)
    disturbed: int = 0

    def calibrate(self) -> None:
        """Warm up and determine the number of runs in one measurement."""
        for _ in range(3):
            self.run()
        self.times = max(1, round(SHORTEST / max(self.once(), 1e-9)))

    def once(self) -> float:
        """Seconds of one run."""
        start = self.clock()
        for _ in range(self.times):
            self.run()
        return (self.clock() - start) / self.times

    def measure(self) -> None:
        """Add a round."""
        found = []
        for _ in range(4 if self.clock is time.perf_counter else 1):
            self.run()
            waited = waiting()
            seconds = self.once()
            found.append(((waiting() - waited) / (seconds * self.times), seconds))
            if found[-1][0] < 0.02:
                break
        else:
            self.disturbed += 1
        self.seconds.append(min(found)[1])


def waiting() -> float:
    """Seconds for which this process's threads were ready to run and did not (Linux; 0 elsewhere)."""
    try:
        tasks = list(Path("/proc/self/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
    except (OSError, IndexError):
        return 0.0


# -- the nets ----------------------------------------------------------------------------------------------------------


def prototxt(row: Row) -> str:
    """A net of the row's layer and its inputs."""
    inputs = "".join(
        f'layer {{ name: "x{i}" type: "Input" top: "x{i}" input_param {{ shape {{ {dims(shape)} }} }} }}\n'
        for i, shape in enumerate(row.shapes)
    )
    bottoms = " ".join(f'bottom: "x{i}"' for i in range(len(row.shapes)))
    tops = " ".join(f'top: "y{i}"' for i in range(row.tops))
    kind = row.type.split()[0]  # Python layers have their module behind it
    return f'name: "{kind}"\n{inputs}layer {{ name: "l" type: "{kind}" {bottoms} {tops} {row.body} }}\n'


def dims(shape: Sequence[int]) -> str:
    return " ".join(f"dim: {n}" for n in shape)


def tuple_of(tops: Any) -> tuple[Tensor, ...]:
    return (tops,) if isinstance(tops, Tensor) else tuple(tops)


def no_gradients(run: Run) -> Run:
    def forward() -> Any:
        with torch.inference_mode():
            return run()

    return forward


def differ(ours: Sequence[Tensor], theirs: Sequence[Tensor], *, draws: bool) -> float:
    """The difference divided by the largest value; of random values, of their mean magnitudes, divided by 100."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if draws:
            off = (1 - a.abs().mean() / b.abs().mean()).abs() / 100
        else:
            off = (a - b.view_as(a)).abs().max() / b.abs().max().clamp(min=1e-30)
        worst = max(worst, off.item())
    return worst


class Benchmark:
    """One row: its net, its inputs, and the runs by name ("ours forward", "plain both", "OpenCV" ...).

    Raises:
        SystemExit: the layer and the plain function disagree.
    """

    def __init__(self, row: Row, threads: int) -> None:
        self.row = row
        torch.manual_seed(0)
        caffe_port.set_random_seed(1)
        self.net = caffe_port.Net(prototxt(row), row.phase, dialect=row.dialect)
        self.layer = self.net.nodes[-1][1]
        with torch.no_grad():
            for name, blob in zip(self.layer.blob_names, self.layer.caffe_blobs, strict=True):
                blob.copy_(dict(row.blobs).get(name, unit_gain)(tuple(blob.shape)))
        holds = chain(row.holds, repeat(row.holds[-1]))
        self.bottoms = [hold(shape) for hold, shape in zip(holds, row.shapes, strict=False)]
        self.blobs = [b.detach() for b in self.layer.caffe_blobs]
        self.runs: dict[str, Run] = {}
        tops = self._forward()
        if row.backward:
            self._both(tops)
        self._net(threads)
        moved = sum(t.numel() for t in [*self.bottoms, *self.blobs, *tops])
        source, target = torch.zeros(moved // 2), torch.zeros(moved // 2)
        self.runs["copy"] = lambda: target.copy_(source)

    def flops(self) -> int:
        """Of the forward pass's products, two for each multiplication."""
        if self.row.plain is None:
            return 0
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.row.plain(*self.bottoms, *self.blobs)
        return counter.get_total_flops()

    def _forward(self) -> tuple[Tensor, ...]:
        ours, written = no_gradients(lambda: self.layer(*self.bottoms)), self.row.plain
        tops = tuple_of(ours())
        self.runs["ours forward"] = ours
        if written is not None:
            plain = no_gradients(lambda: written(*self.bottoms, *self.blobs))
            self._check("values", tops, tuple_of(plain()))
            self.runs["plain forward"] = plain
        return tops

    def _both(self, tops: tuple[Tensor, ...]) -> None:
        layer, plain = self.layer, self.row.plain
        assert plain is not None, f"{self.row.type}: gradients are only timed beside plain PyTorch's"
        leaves = [b.clone().requires_grad_(i not in layer.labels) for i, b in enumerate(self.bottoms)]
        wanted = [t for t in [*leaves, *layer.caffe_blobs] if t.requires_grad]
        diffs = [torch.randn(t.shape) for t in tops]

        def gradients(found: Any) -> Sequence[Tensor]:
            pairs = [(t, d) for t, d in zip(tuple_of(found), diffs, strict=True) if t.requires_grad]
            return torch.autograd.grad([t for t, _ in pairs], wanted, [d for _, d in pairs])

        ours_both = lambda: gradients(layer(*leaves))  # noqa: E731
        plain_both = lambda: gradients(plain(*leaves, *layer.caffe_blobs))  # noqa: E731
        self._check("gradients", ours_both(), plain_both())
        self.runs.update({"ours both": ours_both, "plain both": plain_both})

    def _check(self, what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        off = differ(ours, theirs, draws=self.row.draws)
        if not off < TOLERANCE:
            raise SystemExit(f"{self.row.type} {self.row.body}: {what} differ from plain PyTorch's by {off:.1e}")

    def _net(self, threads: int) -> None:
        inputs = {f"x{i}": b for i, b in enumerate(self.bottoms)}
        self.runs["net"] = ours = no_gradients(lambda: self.net(**inputs))
        if self.row.phase == "TEST" and self.row.dialect in ("bvlc", "ssd"):
            theirs = opencv(self.net, prototxt(self.row), {n: t.numpy() for n, t in inputs.items()}, threads)
            if theirs is not None and differ([ours()["y0"]], [torch.from_numpy(theirs())], draws=False) < TOLERANCE:
                self.runs["OpenCV"] = theirs


def unit_gain(shape: tuple[int, ...]) -> Tensor:
    """Weights that keep their input's magnitude."""
    return torch.randn(shape) / torch.Size(shape[1:]).numel() ** 0.5


def opencv(net: Any, text: str, arrays: dict[str, Any], threads: int) -> Run | None:
    """A forward pass in OpenCV, or None if it is not installed, cannot read the net or gives another shape."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(threads)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def forward() -> Any:
        for name, array in arrays.items():
            theirs.setInput(array, name)
        return theirs.forward()

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "net.caffemodel")
        net.save(weights)
        try:
            files = (np.frombuffer(file, np.uint8) for file in (text.encode(), weights.read_bytes()))
            theirs = cv2.dnn.readNetFromCaffe(*files)
            return forward if forward().shape == net.shapes["y0"] else None
        except cv2.error:
            return None


# -- the report --------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """A row's times by run, and the operations that its products take."""

    row: Row
    times: dict[str, Contestant]
    flops: int

    def ratio(self, a: str, b: str) -> tuple[float, float] | None:
        """The median of the rounds' ratios, and the ratio of the fastest runs."""
        if a not in self.times or b not in self.times:
            return None
        first, second = self.times[a].seconds, self.times[b].seconds
        return statistics.median(x / y for x, y in zip(first, second, strict=True)), min(first) / min(second)

    def cells(self, speed: float) -> list[str]:
        """The row of the table; ``speed`` is that of large products, in operations per second."""
        cells = [self.row.type, described(self.row)]
        for kind in ("forward", "both"):
            ratio = self.ratio(f"ours {kind}", f"plain {kind}")
            cells += [self.timing(f"ours {kind}"), self.timing(f"plain {kind}")]
            cells.append("{:.2f} ({:.2f})".format(*ratio) if ratio else "")
        memory, arithmetic = min(self.times["copy"].seconds), self.flops / speed
        limit = self.row.note or ("arithmetic" if arithmetic > memory else "memory")
        floor = "" if self.row.view else milliseconds(max(memory, arithmetic))
        return [*cells, self.timing("net"), self.timing("OpenCV"), floor, limit]

    def timing(self, name: str) -> str:
        return milliseconds(statistics.median(self.times[name].seconds)) if name in self.times else ""


def milliseconds(seconds: float) -> str:
    """Three significant digits, at most three decimals."""
    ms = seconds * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"


def described(row: Row) -> str:
    body = row.body.split("{", 1)[1].rsplit("}", 1)[0].strip() if row.body else ""
    shapes = dict.fromkeys("x".join(map(str, s)) for s in row.shapes)
    return " ".join(filter(None, [", ".join(shapes), body, row.phase if row.phase == "TRAIN" else ""]))


def ceiling(clock: Clock) -> float:
    """Operations a second of a large matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = Contestant(lambda: a @ b, clock)
    product.calibrate()
    for _ in range(10):
        product.measure()
    return 2 * 1024**3 / min(product.seconds)


def compete(row: Row, rounds: int, threads: int, clock: Clock) -> Result:
    """Check and time one row."""
    bout = Benchmark(row, threads)
    flops, times = bout.flops(), {name: Contestant(run, clock) for name, run in bout.runs.items()}
    for contestant in times.values():
        contestant.calibrate()
    for i in range(rounds):
        for contestant in times.values() if i % 2 == 0 else reversed(times.values()):
            contestant.measure()
    for contestant in times.values():
        contestant.run = bool  # frees its memory
    return Result(row, times, flops)


def summary(results: Sequence[Result]) -> str:
    """Medians and the worst over the rows."""
    lines = []
    for kind in ("forward", "both"):
        found = [(r.ratio(f"ours {kind}", f"plain {kind}"), r.row) for r in results]
        ratios = [(*both, row) for both, row in found if both]
        if not ratios:
            continue
        medians, fastest = ([r[i] for r in ratios] for i in (0, 1))
        worst = max(ratios, key=lambda r: r[0])
        lines.append(
            f"{kind}: {len(ratios)} rows, median overhead {statistics.median(medians) - 1:+.1%}"
            f" (fastest runs {statistics.median(fastest) - 1:+.1%}), "
            f"worst {worst[0]:.2f} ({worst[1]:.2f}) times: {worst[2].type} {described(worst[2])}; "
            f"{sum(m > 2 for m in medians)} over 2 times"
        )
    against = [ratio[0] for r in results if (ratio := r.ratio("OpenCV", "net"))]
    if against:
        lines.append(f"OpenCV: {len(against)} rows, {statistics.median(against):.2f} times our net's time (median)")
    every = [c for r in results for c in r.times.values()]
    share = sum(c.disturbed for c in every) / sum(len(c.seconds) for c in every)
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return "\n".join([*lines, f"{share:.0%} of the measurements were disturbed{load}"])


HEADER = (
    *("layer", "bottoms and parameters", "forward ms", "plain", "ratio", "both ms", "plain", "ratio"),
    *("net ms", "OpenCV", "floor ms", "limited by"),
)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---:" if 2 <= i < len(HEADER) - 1 else "---" for i in range(len(HEADER))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [HEADER, rule, *lines])


TIMED = {"forward": 2, "both": 5, "net": 8}
"""Columns of the table that are compared with another commit's."""


def against(folder: str, options: Sequence[str]) -> str:
    """The table of both commits' medians over three turns and their ratios, the row with the worst one first."""
    programs = {"before": Path(folder, "benchmarks/layers.py"), "after": Path(__file__)}
    times: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for turn in tqdm(range(6), unit="run", disable=None):
        name = ("before", "after")[(turn + turn // 2) % 2]
        command = [sys.executable, str(programs[name]), "--markdown", *options]
        if name == "after":
            command.append(f"--types={','.join({kind for kind, _ in times})}")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == len(HEADER) and cells[TIMED["net"]].replace(".", "").isdigit():
                row = times.setdefault((cells[0], cells[1]), {})
                for kind, column in TIMED.items():
                    if cells[column]:
                        row.setdefault(f"{kind} {name}", []).append(float(cells[column]))
    lines = []
    for (kind, row), found in times.items():
        ratios, cells = [], [kind, row]
        for timed in TIMED:
            both = [found.get(f"{timed} {name}") for name in programs]
            medians = [statistics.median(seconds) for seconds in both if seconds]
            if len(medians) == 2:
                ratios.append(medians[1] / medians[0])
            cells += [*(f"{m:.3g}" for m in medians), f"{ratios[-1]:.2f}"] if len(medians) == 2 else ["", "", ""]
        if ratios:
            lines.append((max(ratios), cells))
    header = [
        "layer",
        "bottoms and parameters",
        *(f"{kind} {x}" for kind in TIMED for x in ("ms before", "after", "ratio")),
    ]
    ordered = [cells for _, cells in sorted(lines, key=lambda line: -line[0])]
    medians = ", ".join(
        f"{kind} {statistics.median(found):.2f}"
        for i, kind in enumerate(TIMED)
        if (found := [float(cells[4 + 3 * i]) for cells in ordered if cells[4 + 3 * i]])
    )
    return f"{table(header, ordered, right=range(2, len(header)))}\n\nafter / before, medians: {medians}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="default 2")
    parser.add_argument("--only", default="", help="only types whose name contains this word")
    parser.add_argument("--markdown", action="store_true", help="the table in the form of docs/speed.md")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's time, on one thread")
    parser.add_argument("--against", metavar="DIR", help="the folder of another commit's checkout, to compare with")
    parser.add_argument("--types", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.against:
        options = [f"--rounds={args.rounds}", f"--threads={args.threads}", f"--only={args.only}"]
        print(against(args.against, [*options, *(["--cpu-time"] if args.cpu_time else [])]))
        return
    if args.cpu_time:
        args.threads = 1
    torch.set_num_threads(args.threads)
    keep_memory(low_memory=False)  # for all benchmarks, as every run of a net sets it
    clock = time.process_time if args.cpu_time else time.perf_counter
    speed = ceiling(clock)
    every = [*layer_rows.ROWS, *fork_rows.ROWS, *detection_rows.ROWS]
    rows = [row for row in every if args.only.lower() in row.type.lower()]
    if args.types is not None:
        rows = [row for row in rows if row.type in args.types.split(",")]
    results = [compete(row, args.rounds, args.threads, clock) for row in tqdm(rows, unit="row", disable=None)]
    lines = [result.cells(speed) for result in results]
    print(markdown(lines) if args.markdown else table(HEADER, lines, right=range(2, len(HEADER) - 1)))
    print(f"\n{args.rounds} rounds, {args.threads} threads, fp32; a large product runs at {speed / 1e9:.0f} GFLOP/s")
    print(summary(results))


if __name__ == "__main__":
    main()
