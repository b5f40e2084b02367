"""Everything that only a GPU can show, in one run: numbers, training, processes, speed.

    python benchmarks/gpu.py [--device cuda] [-o FOLDER] [--width 1/1] [--batch 4] [--rounds 20] [--only PART,...]

    suites    every case of tests/reference on the device: in float32 with TF32 off at the CPU's bounds; with TF32 on
              and in bf16 the distances from real Caffe, which have no bound
    resume    a training that is stopped and resumed against one that is not: equal bits
    processes two processes under torchrun that share the device, against one with their batches together
    speed     deploy pass, whole inference and training step, beside the same net by hand in PyTorch (channels-last, and
              compiled), in float32, TF32 and bf16; convolutions beside the speed of a large matrix product

If a part fails, the next begins all the same, and the exit status is 1. FOLDER (default: gpu_results) gets report.md
and report.json after each part. On the CPU the same parts run, for the tests: --device cpu --width 1/32 --rounds 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import EMBEDDED, Case, cases  # noqa: E402
from slim import with_inputs  # noqa: E402

import caffe_port  # noqa: E402
from benchmarks.decouplednet_by_hand import DecoupledNet  # noqa: E402
from benchmarks.forward import DEPLOY, SIDE, random_weights  # noqa: E402
from benchmarks.training import SOLVER, TRAIN, batch  # noqa: E402
from caffe_port.formats import open_weights  # noqa: E402
from caffe_port.net import Net  # noqa: E402
from caffe_port.solver import Solver  # noqa: E402
from caffe_port.tools.replay import replay  # noqa: E402

GMAC = {"deploy pass": 72.6, "training step": 590 / 4}
"""Of one picture at full width."""
PRECISIONS = ("float32", "TF32", "bf16")


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The settings of one of PRECISIONS; yields the dtype of weights and inputs."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "TF32"
    try:
        yield torch.bfloat16 if name == "bf16" else torch.float32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# -- suites ------------------------------------------------------------------------------------------------------------

SUITES = ("_layers", "_corners", "_nets", "segnet", "deeplab2", "ssd", "ssd_more", "rcnn")
DIALECTS = {"noh": "noh", "bvlc": "bvlc", "ssd": "ssd", "segnet": "segnet", "deeplab2": "deeplab2", "rcnn": "rcnn"}


def suites(args: argparse.Namespace) -> dict[str, Any]:
    """Cases inside the bounds; of the other precisions the median and the largest of each case's worst error."""
    found: list[Case] = []
    for folder in sorted(path for path in EMBEDDED.iterdir() if (path / "manifest.json").exists()):
        dialect = DIALECTS.get(folder.name.partition("_")[0])
        if dialect and folder.name.endswith(
            ("_layers", "_corners", "_nets", "segnet", "deeplab2", "ssd", "ssd_more", "rcnn")
        ):
            found += cases(folder.name, dialect)
    found = found[:: args.every]
    out: dict[str, Any] = {"cases": len(found)}
    for name in PRECISIONS if args.device.type == "cuda" else PRECISIONS[:1]:
        wrong, errors, refused = [], [], []
        with precision(name) as dtype:
            for case in found:
                try:
                    caffe_port.set_random_seed(case.random_seed or 1)
                    net = caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect).to(args.device, dtype)
                    compared = list(replay(net, case.reference, forwards=case.forwards))
                except (RuntimeError, TypeError, caffe_port.CaffeError) as error:
                    refused.append(f"{case}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                    continue
                errors.append(max((float(c.error) for c in compared), default=0.0))
                if not all(c.ok for c in compared):
                    wrong.append(f"{case}: {next(str(c) for c in compared if not c.ok)}")
        finite = [error for error in errors if np.isfinite(error)]
        out[name] = {
            "inside the CPU's bounds": len(errors) - len(wrong),
            "median of the worst errors": statistics.median(finite) if finite else None,
            "largest": max(finite, default=None),
            "outside": wrong[:40] if name == "float32" else len(wrong),
            "raised": refused[:40],
        }
    if out["float32"]["outside"] or out["float32"]["raised"]:
        out["failed"] = True
    return out


# -- training ----------------------------------------------------------------------------------------------------------


def training_files(folder: Path, args: argparse.Namespace, size: int) -> None:
    """The net with inputs for data layers, and a solver for it."""
    (folder / "net.prototxt").write_text(with_inputs(TRAIN, args.width, size, "TRAIN"))
    (folder / "solver.prototxt").write_text(SOLVER.format(net=folder / "net.prototxt"))


ROWS = """name: "rows" layer {{ name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param {{ source: "{source}" batch_size: {batch} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{ num_output: 8 kernel_size: 3
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param {{ num_output: 5
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""
STEPS = """net: "{net}" base_lr: 0.05 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 display: 0
max_iter: {iterations} snapshot: 3 snapshot_prefix: "{prefix}" solver_mode: {mode} random_seed: 7
"""


def rows(folder: Path, size: int, name: str, iterations: int, mode: str) -> Path:
    """A solver over an HDF5 file of 24 rows."""
    import h5py

    draw = np.random.RandomState(0)
    with h5py.File(folder / "rows.h5", "w") as file:
        file["data"] = draw.standard_normal((24, 3, 8, 8)).astype(np.float32)
        file["label"] = draw.randint(0, 5, 24).astype(np.float32)
    (folder / "rows.txt").write_text(f"{folder / 'rows.h5'}\n")
    net, solver = folder / f"{name}.prototxt", folder / f"{name}_solver.prototxt"
    net.write_text(ROWS.format(source=folder / "rows.txt", batch=size))
    solver.write_text(STEPS.format(net=net, iterations=iterations, prefix=folder / name, mode=mode))
    return solver


def train(args: argparse.Namespace, *words: str, processes: int = 1) -> None:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    device = "cuda:0" if args.device.type == "cuda" else "cpu"
    command = [*launch, "-m", "caffe_port.solver", *words, "--device", device]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {f"{layer.name}/{i}": np.array(b) for layer in open_weights(path).layers for i, b in enumerate(layer.blobs)}


def resume(args: argparse.Namespace) -> dict[str, Any]:
    """The largest difference between six iterations and three that are resumed for three more."""
    mode = "GPU" if args.device.type == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(args, str(rows(folder, 4, "whole", 6, mode)))
        train(args, str(rows(folder, 4, "parts", 3, mode)))
        train(args, str(rows(folder, 4, "parts", 6, mode)), "--snapshot", f"{folder}/parts_iter_3.solverstate")
        one, other = (weights_of(folder / f"{run}_iter_6.caffemodel") for run in ("whole", "parts"))
    worst = max(float(np.abs(one[key] - other[key]).max()) for key in one)
    return {"largest difference": worst, "equal bits": worst == 0, "failed": worst != 0}


def processes(args: argparse.Namespace) -> dict[str, Any]:
    """The largest difference between two processes with batches of 4 and one with 8, after six iterations."""
    mode = "GPU" if args.device.type == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(args, str(rows(folder, 8, "one", 6, mode)))
        train(args, str(rows(folder, 4, "two", 6, mode)), processes=2)
        one, other = (weights_of(folder / f"{run}_iter_6.caffemodel") for run in ("one", "two"))
    worst = max(float(np.abs(one[key] - other[key]).max()) for key in one)
    return {"largest difference": worst, "failed": worst > 1e-5}


# -- speed -------------------------------------------------------------------------------------------------------------


def median_ms(run: Callable[[], object], args: argparse.Namespace) -> float:
    """The median of the rounds after two that are not counted, in milliseconds."""
    wait = torch.cuda.synchronize if args.device.type == "cuda" else bool
    times = []
    for _ in range(args.rounds + 2):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def timed(ways: Mapping[str, Callable[[], Callable[[], object]]], args: argparse.Namespace) -> dict[str, Any]:
    """Each way's median, or why it does not run; ratios to the first."""
    out: dict[str, Any] = {}
    for name, prepare in ways.items():
        try:
            out[name] = round(median_ms(prepare(), args), 3)
        except Exception as error:
            out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if args.device.type == "cuda":
            torch.cuda.empty_cache()
    ours = next(iter(out.values()))
    if isinstance(ours, float):
        out["times ours"] = {name: round(ms / ours, 2) for name, ms in out.items() if isinstance(ms, float)}
    return out


def peak(args: argparse.Namespace, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    n = 8192 if args.device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / median_ms(lambda: a @ b, args) / 1e9


def convolution(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of our Convolution of VGG's size: 512 channels, 3x3, 40x40, 16 pictures; on the CPU smaller."""
    channels, n = (512, 16) if args.device.type == "cuda" else (32, 1)
    net = Net(
        f"input: 'data' input_shape {{ dim: {n} dim: {channels} dim: 40 dim: 40 }}"
        " layer { name: 'c' type: 'Convolution' bottom: 'data' top: 'c'"
        f" convolution_param {{ num_output: {channels} kernel_size: 3 pad: 1 weight_filler {{ type: 'xavier' }} }} }}",
        phase="TEST",
        dialect="bvlc",
    ).to(args.device, dtype)
    x = torch.randn(n, channels, 40, 40, device=args.device, dtype=dtype)
    with torch.inference_mode():
        ms = median_ms(lambda: net(data=x), args)
    return {"ms": ms, "TFLOP/s": 2 * n * channels**2 * 9 * 1600 / ms / 1e9}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", args.width, "-o", name]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        weights = random_weights(folder / DEPLOY, folder / "net.caffemodel")
        for precise in PRECISIONS if args.device.type == "cuda" else ("float32", "bf16"):
            with precision(precise) as dtype:
                peak_speed, made = peak(args, dtype), convolution(args, dtype)
                out[precise] = {
                    "matrix product, TFLOP/s": round(peak_speed, 1),
                    "convolution of 512 channels, TFLOP/s": round(made["TFLOP/s"], 1),
                    "share of the matrix product's": round(made["TFLOP/s"] / peak_speed, 2),
                    "deploy pass, ms": deploy(folder / DEPLOY, weights, args, dtype),
                    "whole inference, ms": inference(folder / DEPLOY, weights, args, dtype),
                    "training step, ms": step(folder, args, dtype),
                }
    if Fraction(args.width) == 1:
        out["GMAC a picture"] = GMAC
    return out


def deploy(prototxt: Path, weights: Path, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    net = Net(prototxt, weights, "TEST").to(args.device, dtype)
    image = torch.randn(1, 3, SIDE, SIDE, device=args.device, dtype=dtype) * 60
    label = torch.zeros(1, 20, 1, 1, device=args.device, dtype=dtype)
    label[0, 14] = 0.9

    def ours() -> Callable[[], object]:
        return torch.inference_mode()(lambda: net(**{"data": image, "cls-score-masked": label}))

    def graph() -> Callable[[], object]:
        run = ours()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            run()
        return recorded.replay

    ways = {"caffe_port": ours, **({"caffe_port, a CUDA graph": graph} if args.device.type == "cuda" else {})}
    return timed({**ways, **by_hand(net.state_dict(), image, label, args)}, args)


def by_hand(state: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor, args: argparse.Namespace):
    """The net by hand: as it is, channels-last, and that compiled."""

    def way(*, last: bool, compiled: bool) -> Callable[[], object]:
        net: Any = DecoupledNet(state)
        x = image
        if last:
            net, x = net.to(memory_format=torch.channels_last), image.contiguous(memory_format=torch.channels_last)
        run = torch.compile(net) if compiled else net
        return torch.inference_mode()(lambda: run(x, label))

    return {
        "by hand": lambda: way(last=False, compiled=False),
        "by hand, channels-last": lambda: way(last=True, compiled=False),
        **({"by hand, channels-last, compiled": lambda: way(last=True, compiled=True)} if args.compile else {}),
    }


def inference(prototxt: Path, weights: Path, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    from caffe_port.segmentation.inference import PassByPass, Segmenter

    net = Net(prototxt, weights, "TEST").to(args.device, dtype)
    picture = torch.randn(1, 3, SIDE, SIDE).numpy()
    scores = sorted(Segmenter(net).maps(picture).scores.astype(float), reverse=True)
    threshold = (scores[2] + scores[3]) / 2
    ways = {"caffe_port": Segmenter, "pass by pass": PassByPass}
    return timed(
        {n: lambda kind=kind: lambda: kind(net, threshold=threshold).maps(picture) for n, kind in ways.items()}, args
    )


def step(folder: Path, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    training_files(folder, args, args.batch)
    given = {n: torch.from_numpy(array).to(args.device) for n, array in batch(args.batch).items()}

    def ours() -> Callable[[], object]:
        wanted = {"precision": "bf16"} if dtype == torch.bfloat16 else {}
        solver = Solver(str(folder / "solver.prototxt"), dialect="noh", device=args.device, **wanted)

        def run() -> None:
            solver.net.zero_grad(set_to_none=True)
            loss, _ = solver.net.losses(**given)
            loss.backward()
            solver.apply_update()

        return run

    def hand(*, last: bool, compiled: bool) -> Callable[[], object]:
        state = Net(folder / "net.prototxt", None, "TRAIN", dialect="noh").state_dict()
        net: Any = DecoupledNet(state, learn=True).to(args.device)
        x = given["data"]
        if last:
            net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        truth, forward = given["seg-label"][:, 0].long(), torch.compile(net) if compiled else net

        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast(args.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                scores = forward(x, given["cls-label"])
                loss = torch.nn.functional.cross_entropy(scores, truth, ignore_index=255)
            loss.backward()
            optimizer.step()

        return run

    ways = {"caffe_port": ours, "by hand": lambda: hand(last=False, compiled=False)}
    ways["by hand, channels-last"] = lambda: hand(last=True, compiled=False)
    if args.compile:
        ways["by hand, channels-last, compiled"] = lambda: hand(last=True, compiled=True)
    return timed(ways, args)


# -- the run -----------------------------------------------------------------------------------------------------------

PARTS = {"suites": suites, "resume": resume, "processes": processes, "speed": speed}


def lines(found: Any, depth: int = 0) -> list[str]:
    """Nested results as a Markdown list."""
    if not isinstance(found, dict):
        return [f"{'  ' * depth}- {found}"]
    out = []
    for key, value in found.items():
        if isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else ()
            out.append(f"{'  ' * depth}- {key}:")
            out += lines(dict(inner), depth + 1) if inner else [f"{'  ' * (depth + 1)}- {item}" for item in value]
        else:
            out.append(f"{'  ' * depth}- {key}: {value}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", type=torch.device, default=torch.device(usual), help="default: cuda, if there is one"
    )
    parser.add_argument("-o", "--output", default="gpu_results", help="the folder for the report")
    parser.add_argument("--width", default="1/1", help="of the net's layers (default 1/1, the published net)")
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default 4)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default 20)")
    parser.add_argument("--every", type=int, default=1, help="only every Nth case of the suites")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    args = parser.parse_args()
    unknown = {*args.only.split(",")} - {*PARTS}
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}, expected some of {','.join(PARTS)}")
    card = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.processor() or "CPU"
    report: dict[str, Any] = {"device": card, "torch": torch.__version__, "width": args.width, "batch": args.batch}
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        start = time.perf_counter()
        try:
            report[name] = PARTS[name](args)
        except Exception:
            report[name] = {"failed": True, "traceback": traceback.format_exc().splitlines()[-12:]}
        report[name]["seconds"] = round(time.perf_counter() - start, 1)
        (out / "report.json").write_text(json.dumps(report, indent=1, default=str))
        (out / "report.md").write_text("\n".join(lines(report)) + "\n")
        print("\n".join(lines({name: report[name]})), flush=True)
    sys.exit(any(isinstance(part, dict) and part.get("failed") for part in report.values()))


if __name__ == "__main__":
    main()
