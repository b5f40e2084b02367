"""How many of our ONNX files OpenCV reads, with which numbers.

    python benchmarks/opencv.py --python PYTHON [--fixed-batch] [--only TEXT] [--list]

Exports every case of tests/reference that can be deployed, has PYTHON, which needs cv2 and numpy only, run the files,
and compares with real Caffe's stored numbers at the bounds of the tests. Prints for each suite how many cases are
equal, differ, are refused, or end the process; ``--list`` names those that are not equal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SERVER = """
import sys
import cv2, numpy
cv2.setNumThreads(1)
getattr(cv2, "setLogLevel", lambda level: None)(0)
print(cv2.__version__, flush=True)
for path in sys.argv[1:]:
    print("start", path, flush=True)
    with numpy.load(path + ".npz") as arrays:
        given = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in/")}
        names = [str(name) for name in arrays["outputs"]]
    try:
        net = cv2.dnn.readNetFromONNX(path + ".onnx")
        for name, array in given.items():
            net.setInput(array, name)
        made = net.forward(names)
        numpy.savez(path + ".made.npz", **dict(zip(names, made)))
    except Exception as error:
        said = [line for line in str(error).splitlines() if line.strip(" >")]
        print("refused", path, said[-1][-160:] if said else type(error).__name__, flush=True)
"""


def written(folder: Path, dynamic_batch: bool, only: str) -> dict[str, Any]:
    """The cases, by the stem of their files in a folder."""
    import numpy as np
    from reference import cases
    from test_export_onnx import ANOTHER_WAY, CASES, deployed, prepared

    from caffe_port.export import onnx

    found = {}
    for i, case in enumerate([*CASES, *cases("noh_nets", "noh")]):
        if only not in str(case) or not deployed(case) or str(case) in ANOTHER_WAY:
            continue
        net = prepared(case)
        blobs = [key.partition("/")[2] for key in case.reference.keys("out")]
        wanted = [blob for blob in blobs if blob not in net.graph.inputs and net.shapes.get(blob) is not None]
        if not wanted or any(not net.shapes[blob] for blob in wanted):  # OpenCV has no arrays without axes
            continue
        stem = folder / f"n{i}"
        exported = onnx(net, f"{stem}.onnx", verify=False, outputs=wanted, dynamic_batch=dynamic_batch)
        arrays = {f"in/{name}": case.reference[f"in/{name}"].astype(np.float32) for name in exported.inputs}
        arrays = {key: array.reshape(net.shapes[key[3:]]) for key, array in arrays.items()}
        np.savez(f"{stem}.npz", outputs=np.array(exported.outputs), **arrays)
        found[str(stem)] = case
    return found


def ran(python: str, stems: list[str]) -> tuple[str, dict[str, str]]:
    """OpenCV's version, and what it said of the files that it did not run."""
    said: dict[str, str] = {}
    version = ""
    while stems:
        done = subprocess.run([python, "-c", SERVER, *stems], check=False, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        if not lines:
            raise SystemExit(f"{python}: {done.stderr.strip().splitlines()[-1]}")
        version = lines[0]
        for line in lines:
            if line.startswith("refused "):
                _, path, error = line.split(" ", 2)
                said[path] = error
        if not done.returncode:
            break
        last = [line.split(" ", 1)[1] for line in lines if line.startswith("start ")][-1]
        said[last] = f"ends the process: exit {done.returncode}"
        stems = stems[stems.index(last) + 1 :]
    return version, said


def off(case: Any, made: Path) -> list[str]:
    """The blobs that are not real Caffe's."""
    import numpy as np

    from caffe_port.tools.compare import compare

    wrong = []
    with np.load(made) as arrays:
        for blob in arrays.files:
            theirs, ours = case.reference[f"out/{blob}"], arrays[blob]
            if ours.size != theirs.size:
                wrong.append(f"{blob}: shape {ours.shape}, expected {theirs.shape}")
                continue
            compared = compare(blob, ours.reshape(theirs.shape), theirs, case.reference.bound(f"out/{blob}"), ties=True)
            wrong += [] if compared.ok else [str(compared)]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python with cv2")
    parser.add_argument("--fixed-batch", action="store_true", help="export with the definitions' batch sizes only")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their names")
    parser.add_argument("--list", action="store_true", help="name the cases that are not equal")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        found = written(Path(folder), not options.fixed_batch, options.only)
        version, said = ran(options.python, list(found))
        for stem, case in found.items():
            wrong = [] if stem in said else off(case, Path(f"{stem}.made.npz"))
            error = said.get(stem, "; ".join(wrong))
            kind = "equal" if not error else "different" if wrong else "refused"
            kind = "crashes" if error.startswith("ends the process") else kind
            counts[case.suite][kind] += 1
            counts["all"][kind] += 1
            if error and options.list:
                print(f"{case}: {kind}: {error}")
    for suite, kinds in counts.items():
        numbers = ", ".join(f"{kinds[kind]} {kind}" for kind in ("equal", "different", "refused", "crashes"))
        print(f"OpenCV {version}, {suite}: {kinds.total()} files, {numbers}")


if __name__ == "__main__":
    main()
