"""The single-layer suites run live in kendryte-caffe, a compiled Caffe from PyPI: ``make oracle``.

    python benchmarks/oracle.py --python VENV/bin/python [--suite bvlc_layers] [--suite bvlc_corners]

Checks the numbers in tests/reference without building a Caffe: each case gets the stored inputs, parameters and diffs,
runs forward and backward in that Caffe, and is compared with the stored numbers and with ours, within the bounds of the
tests. Exits with 1 if a case differs or fails that ``KNOWN`` does not list, or if one that it lists does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import Case, cases  # noqa: E402

import caffe_port  # noqa: E402
from caffe_port.tools.compare import Comparison, compare  # noqa: E402
from caffe_port.tools.replay import ours, prepare  # noqa: E402

_BACKWARD = ("diff/", "pdiff/")
_BATCHNORM = "BatchNorm normalises by the stored statistics, and does not update them, where BVLC uses the batch's"
_CLIP = "there is no Clip"
KNOWN = {
    **dict.fromkeys(["batchnorm_scale_inplace", "batchnorm_train", "batchnorm_train_maf"], _BATCHNORM),
    **dict.fromkeys(["batchnorm_2axes", "batchnorm_5axes", "batchnorm_inplace", "batchnorm_one_number"], _BATCHNORM),
    "batchnorm_test_batch": _BATCHNORM,
    "clip": _CLIP,
    "clip_at_integers": _CLIP,
}
"""Cases in which kendryte-caffe differs from BVLC Caffe 1.0, with the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Run the suites in kendryte-caffe.", allow_abbrev=False)
    parser.add_argument("--python", required=True, help="a Python that has kendryte-caffe")
    parser.add_argument("--suite", action="append", help="default: bvlc_layers and bvlc_corners")
    arguments = parser.parse_args(argv)
    unexpected = 0
    for suite in arguments.suite or ["bvlc_layers", "bvlc_corners"]:
        unexpected += check(suite, arguments.python)
    return int(unexpected > 0)


def check(suite: str, python: str) -> int:
    """Run a suite and print the results; returns the number of cases that unexpectedly differ or do not."""
    wanted = cases(suite, "bvlc")
    worst, equal, unexpected = {"stored": [0.0, 0.0], "ours": [0.0, 0.0]}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        log = run(wanted, python, Path(folder))
        print(f"{suite}: {len(wanted)} cases", flush=True)
        for case in wanted:
            found: dict[str, list[Comparison]] = {}
            if not log[case.name]:
                theirs = np.load(Path(folder) / f"{case.name}.npz")
                found = {"stored": against_stored(case, theirs), "ours": against_ours(case, theirs)}
            wrong = {name: [c for c in some if not c.ok] for name, some in found.items()}
            far = {name: max(some, key=lambda c: c.error) for name, some in wrong.items() if some}
            what = [f"{c.key} is {c.error:.1e} from {name}" for name, c in far.items()]
            if log[case.name]:
                what = [f"refused: {log[case.name]}"]
            unexpected += bool(what) != (case.name in KNOWN)
            if what or case.name in KNOWN:
                print(f"  {case.name}: {'; '.join(what) or 'equal'} ({KNOWN.get(case.name, 'UNEXPECTED')})")
            else:
                equal += 1
                note(worst, case, found)
    print(f"  {equal} within bounds, {len(wanted) - equal} not")
    for name, (forward, back) in worst.items():
        print(f"  largest error from {name}: forward {forward:.1e}, backward {back:.1e}", flush=True)
    return unexpected


def note(worst: dict[str, list[float]], case: Case, found: dict[str, list[Comparison]]) -> None:
    """Keep the largest errors, forward and backward, of arrays that are not noise in real Caffe."""
    noise = case.reference.noise
    for name, some in found.items():
        for c in some:
            if c.key not in noise:
                backward = c.key.startswith(_BACKWARD)
                worst[name][backward] = max(worst[name][backward], c.error)


def run(wanted: list[Case], python: str, folder: Path) -> dict[str, str]:
    """Run the cases with the other Python, into ``folder``; returns the error of each, "" for none."""
    entries = [
        {
            "name": case.name,
            "prototxt": text(case),
            "npz": str(case.npz),
            "phase": case.phase,
            "forwards": case.forwards,
        }
        for case in wanted
    ]
    (folder / "cases.json").write_text(json.dumps(entries))
    command = [python, str(Path(__file__).with_name("oracle_worker.py")), str(folder / "cases.json"), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    log: dict[str, str] = json.loads((folder / "log.json").read_text())
    return log


def text(case: Case) -> str:
    return case.prototxt if "\n" in case.prototxt else Path(case.prototxt).read_text()


def against_stored(case: Case, theirs: np.lib.npyio.NpzFile) -> list[Comparison]:
    reference = case.reference
    return [compare(key, theirs[key], reference[key], reference.bound(key)) for key in theirs.files]


def against_ours(case: Case, theirs: np.lib.npyio.NpzFile) -> list[Comparison]:
    reference = case.reference
    net = caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect)
    prepare(net, reference)
    for _ in range(case.forwards):
        net.forward()
    found = [(key, np.array(ours(net, key))) for key in theirs.files if not key.startswith(_BACKWARD)]
    if reference.runs_backward:
        net.clear_param_diffs()
        for key in reference.keys("seed"):
            diff = net.blobs[key.removeprefix("seed/")].diff
            diff[...] = reference.fitted(key, diff.shape)
        net.backward()
        found += [(key, np.array(ours(net, key))) for key in theirs.files if key.startswith(_BACKWARD)]
    return [compare(key, array, theirs[key], reference.bound(key)) for key, array in found]


if __name__ == "__main__":
    sys.exit(main())
