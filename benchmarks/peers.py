"""Ordinary nets here and in other programs: first the numbers, then the times.

    python benchmarks/peers.py --folder DIR [--nets LeNet ...] [--batches 1 10] [--threads 1 2] [--peers MNN ...]
                               [--rounds 9] [--seconds 10] [--cpu] [--against CHECKOUT] [--rows FILE] [--prepare]

OpenCV reads the definition and the weights themselves; MNN, OpenVINO and onnxruntime read the ONNX file that
``caffe_port.export`` writes of them. Each program has a virtual environment (made in DIR, of the versions below, which
needs a package index the first time) and a process of its own; the processes run in turn, round by round, with a pause
between them in which waiting threads go to sleep. ``--against`` adds another checkout of this project as a column.

An error is the largest one over all outputs of the first and the last picture of a batch, each as a share of that
output's largest value there, against the net in double precision. The ratio is of the medians: of the fastest other
program whose error is under 1e-5, to ours. Times are by the clock, or with ``--cpu`` processor time, of one pass with
the input given as an array and the outputs read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peer_nets import NETS, SMALL, definition, draw, pictures  # noqa: E402
from benchmarks.turns import environment, serve, take_turns  # noqa: E402

PEERS = {
    "OpenCV": "opencv-python-headless==4.14.0.94",
    "MNN": "mnn==3.6.1",
    "OpenVINO": "openvino==2026.4.1",
    "onnxruntime": "onnxruntime==1.32.0",
}
ALSO = "numpy==2.4.6"
OURS = "caffe_port"
EXACT = 1e-5
LEAST_MS = 20
"""A timed turn repeats the pass until it takes about that long."""
LONG_MS = 1000
"""Of such passes no third one comes before the timed ones."""
PAUSE = 0.05

Run = Callable[[], dict[str, Any]]


# -- the programs ------------------------------------------------------------------------------------------------------


def ours(files: Path, x: Any, threads: int) -> Run:
    import caffe_port  # isort: skip  # before torch, so that waiting threads sleep
    import torch

    torch.set_num_threads(threads)
    net = caffe_port.Net(files / "net.prototxt", files / "net.caffemodel", caffe_port.TEST)

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            return {name: y.numpy() for name, y in net(data=torch.from_numpy(x)).items()}

    return run


def opencv(files: Path, x: Any, threads: int) -> Run:
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromCaffe(str(files / "net.prototxt"), str(files / "net.caffemodel"))
    names = net.getUnconnectedOutLayersNames()

    def run() -> dict[str, Any]:
        net.setInput(x)
        return dict(zip(names, net.forward(names), strict=True))

    return run


def mnn(files: Path, x: Any, threads: int) -> Run:
    import MNN
    import numpy as np

    model = files / "net.mnn"
    if not model.exists():
        convert = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX", "--bizCode", "net"]
        convert += ["--modelFile", str(files.resolve() / "net.onnx"), "--MNNModel", str(model.resolve())]
        subprocess.run(convert, check=True, stdout=sys.stderr, cwd=files)  # it leaves a file behind
    net = MNN.Interpreter(str(model))
    session = net.createSession({"backend": "CPU", "numThread": threads})
    given, kind = net.getSessionInput(session), MNN.Tensor_DimensionType_Caffe
    net.resizeTensor(given, x.shape)
    net.resizeSession(session)
    host = MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, kind)
    tops = net.getSessionOutputAll(session)
    empty = {name: np.zeros(top.getShape(), np.float32) for name, top in tops.items()}
    made = {name: MNN.Tensor(y.shape, MNN.Halide_Type_Float, y, kind) for name, y in empty.items()}

    def run() -> dict[str, Any]:
        given.copyFrom(host)
        net.runSession(session)
        for name, top in tops.items():
            top.copyToHostTensor(made[name])
        return {name: top.getNumpyData() for name, top in made.items()}

    return run


def openvino(files: Path, x: Any, threads: int) -> Run:
    from openvino import Core

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = Core().read_model(files / "net.onnx")
    model.reshape(list(x.shape))
    request = Core().compile_model(model, "CPU", hints).create_infer_request()
    return lambda: {top.get_any_name(): y for top, y in request.infer([x]).items()}


def onnxruntime(files: Path, x: Any, threads: int) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(files / "net.onnx"), settings, providers=["CPUExecutionProvider"])
    names, (given,) = [top.name for top in session.get_outputs()], session.get_inputs()
    return lambda: dict(zip(names, session.run(names, {given.name: x}), strict=True))


PROGRAMS: dict[str, Callable[[Path, Any, int], Run]] = {
    OURS: ours,
    "OpenCV": opencv,
    "MNN": mnn,
    "OpenVINO": openvino,
    "onnxruntime": onnxruntime,
}


def work(options: argparse.Namespace) -> None:
    """In a program's process: save its numbers, and serve timed passes."""
    import numpy as np

    name, files = options.serve, Path(options.files)
    sys.stdout = os.fdopen(os.dup(1), "w")  # MNN writes to standard output, too
    os.dup2(2, 1)
    run = PROGRAMS[OURS if name not in PROGRAMS else name](files, np.load(files / "x.npy"), options.threads[0])
    clock, taken = "process_time" if options.cpu else "perf_counter", 0.0
    for i in range(3):  # the first ones of ours prepare weights
        start = getattr(time, clock)()
        found = run()
        taken = (getattr(time, clock)() - start) * 1e3
        if i and taken > LONG_MS:
            break
    ends = {top: np.array(y)[[0, -1]] for top, y in found.items()}
    np.savez(files / f"{name.replace('/', '_')}.npz", **ends)
    serve(run, clock, repeat=ceil(LEAST_MS / max(taken, 1e-3)))


def make(options: argparse.Namespace) -> None:
    """In a process of its own: the files of a net, and its first and last picture's numbers in double precision."""
    import numpy as np
    import torch

    import caffe_port
    from caffe_port.export import onnx

    files = Path(options.files)
    net = caffe_port.Net(files / "net.prototxt", caffe_port.TEST)
    draw(net)
    net.save(files / "net.caffemodel")
    onnx(net, files / "net.onnx", overwrite=True, verify=False)
    x = pictures(net.shapes["data"])
    np.save(files / "x.npy", x.numpy())
    with torch.inference_mode():
        tops = [net.double()(data=x[i : i + 1].double()) for i in (0, len(x) - 1)]
    np.savez(files / "expected.npz", **{top: torch.cat([y[top] for y in tops]).numpy() for top in tops[0]})


# -- the comparison ----------------------------------------------------------------------------------------------------


def files_of(net: str, batch: int, folder: Path) -> Path:
    """The folder of a net's files, made anew if its definition changed."""
    files, text = folder / f"{net}-{batch}", definition(net, batch)
    written = files / "net.prototxt"
    if not (files / "expected.npz").exists() or written.read_text() != text:
        files.mkdir(parents=True, exist_ok=True)
        for old in files.iterdir():
            old.unlink()
        written.write_text(text)
        me = [sys.executable, __file__, "--make", "--files", str(files)]
        subprocess.run(me, check=True, env=environment(os.cpu_count() or 1))
    return files


def python_of(peer: str, folder: Path) -> str:
    """The interpreter of a program's environment, made if it is not there."""
    home = folder / "environments" / PEERS[peer]
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin/pip"), "install", "-q", PEERS[peer], ALSO], check=True, stdout=sys.stderr)
        (home / "complete").touch()
    return str(home / "bin/python")


def error(files: Path, name: str) -> float:
    """The largest error of a program's numbers, as a share of each output's largest value."""
    import numpy as np

    worst = 0.0
    with np.load(files / "expected.npz") as expected, np.load(files / f"{name.replace('/', '_')}.npz") as found:
        for top in expected.files:
            if top not in found:
                raise SystemExit(f"{name}: no output {top}, only {', '.join(found.files)}")
            wanted = expected[top]
            off = np.abs(found[top].reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
            worst = max(worst, float(off)) if off == off else float("inf")
    return worst


def row(net: str, batch: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the table: its cells, the ratio, and the median milliseconds of each program."""
    folder = Path(options.folder)
    files = files_of(net, batch, folder)
    served = ["--files", str(files), "--threads", str(threads), *(["--cpu"] if options.cpu else [])]
    commands = {}
    for name in options.columns:
        python = python_of(name, folder) if name in PEERS else sys.executable
        script = str(ROOT / "benchmarks/peers.py") if name in PROGRAMS else __file__
        commands[name] = [python, script, *served, "--serve", name]
        commands[name] += [] if name in PROGRAMS else ["--checkout", options.against]
    turns = {"rounds": options.rounds, "seconds": options.seconds, "warm": 1, "pause": PAUSE, "may_stop": True}
    times, _ = take_turns(commands, threads=threads, cwd=ROOT, **turns)
    if OURS not in times:
        raise SystemExit(f"{net}: {OURS} has no numbers")
    errors = {name: error(files, name) for name in times}
    medians = {name: statistics.median(t) for name, t in times.items()}
    exact = [medians[name] for name in times if name in PEERS and errors[name] < EXACT]
    ratio = min(exact, default=float("nan")) / medians[OURS]
    cells = {name: f"{_short(medians[name])} ({errors[name]:.0e})" for name in times}
    found = [cells.get(name, "refused") for name in options.columns]
    cells = [net, str(batch), str(threads), *found, f"{ratio:.2f}"]
    return {"net": net, "batch": batch, "threads": threads, "cells": cells, "ratio": ratio, "medians": medians}


def rows(options: argparse.Namespace, head: list[str]) -> Iterator[dict[str, Any]]:
    """Each row of the table, from the file of rows where that has it."""
    kept = Path(options.rows) if options.rows else None
    about = {"head": head, "cpu": options.cpu}
    lines = map(json.loads, kept.read_text().splitlines()) if kept and kept.exists() else ()
    have = {(r["net"], r["batch"], r["threads"]): r for r in lines if r["about"] == about}
    for net in options.nets:
        for batch in options.batches:
            for threads in options.threads:
                if (net, batch, threads) not in have:
                    have[net, batch, threads] = found = row(net, batch, threads, options)
                    if kept:
                        with kept.open("a") as file:
                            file.write(json.dumps({**found, "about": about}) + "\n")
                yield have[net, batch, threads]


def summary(table: list[dict[str, Any]]) -> str:
    """How many rows reach what is asked for."""
    table = [r for r in table if r["ratio"] == r["ratio"]]
    if not table:
        return ""
    small = [r["ratio"] for r in table if r["net"] in SMALL and r["batch"] == 1]
    others = [r["ratio"] for r in table if not (r["net"] in SMALL and r["batch"] == 1)]
    ahead = [r["medians"]["MNN"] >= r["medians"][OURS] for r in table if "MNN" in r["medians"]]
    said = (
        [f"{sum(x >= 1 for x in others)} of {len(others)} rows are level with the fastest exact program"]
        if others
        else []
    )
    said += (
        [f"{sum(x >= 1 / 1.5 for x in small)} of {len(small)} of small nets at batch 1 are within 1.5 times"]
        if small
        else []
    )
    said += [f"ahead of MNN on {sum(ahead)} of {len(ahead)}"] if ahead else []
    return f"\nmedian ratio {statistics.median(r['ratio'] for r in table):.2f}; " + "; ".join(said)


def _short(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="for environments, definitions, weights and ONNX files; kept")
    parser.add_argument("--nets", nargs="+", default=[*NETS], choices=[*NETS], metavar="NET", help=", ".join(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--peers", nargs="*", default=[*PEERS], choices=[*PEERS], metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of a row, at most (default 9)")
    parser.add_argument("--seconds", type=float, default=10, help="of timed rounds of a row, at least 3 (default 10)")
    parser.add_argument("--cpu", action="store_true", help="processor time, for a machine with other work")
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout of this project, as a column")
    for name in ("--serve", "--files", "--checkout"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help="make the environments and files, and time nothing")
    parser.add_argument("--rows", metavar="FILE", help="rows are kept there; those that it has are not run again")
    options = parser.parse_args()
    if options.checkout:
        sys.path.insert(0, options.checkout)
    if options.serve or options.make:
        (work if options.serve else make)(options)
        return
    if not options.folder:
        parser.error("--folder is needed")
    if options.prepare:
        for peer in options.peers:
            python_of(peer, Path(options.folder))
        for net in options.nets:
            for batch in options.batches:
                files_of(net, batch, Path(options.folder))
        return
    options.columns = [OURS, *([Path(options.against).name] if options.against else []), *options.peers]
    head = ["net", "batch", "threads", *options.columns, "ratio"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    table = []
    for found in rows(options, head):
        table.append(found)
        print(f"| {' | '.join(found['cells'])} |", flush=True)
    print(summary(table))


if __name__ == "__main__":
    main()
