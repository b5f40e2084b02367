"""Records what a real pycaffe makes of the cases of ``data_cases.py``: FOLDER/DIALECT.npz.

Needs numpy and that pycaffe alone. Every case runs in a process of its own, since rand() belongs to a process and a
failed check of Caffe's ends it. Arguments: FOLDER, "noh" or "bvlc", and the folder that pycaffe lies in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

IDLE = 'layers { name: "idle" type: DUMMY_DATA top: "idle" dummy_data_param { num: 1 channels: 1 height: 1 width: 1 } }'


def record(folder: Path, dialect: str, name: str, phase: str) -> None:
    """One case, in this process."""
    import caffe

    job = json.loads((folder / "cases.json").read_text())
    case = next(c for c in job["cases"] if (c["dialect"], c["name"]) == (dialect, name))
    os.chdir(folder)
    definition = Path(f"{name}.{phase}.prototxt")
    definition.write_text(case["text"])
    if dialect == "bvlc":
        caffe.set_random_seed(job["seed"])
        net = caffe.Net(str(definition), getattr(caffe, phase))
    else:
        net = in_noh(caffe, definition, phase, job["seed"])
    batches = {}
    for batch in range(job["batches"]):
        net.forward()
        batches.update({f"{name}/{phase}/{b}/{batch}": net.blobs[b].data.copy() for b in case["blobs"]})
    np.savez(folder / f"{name}.{phase}.part.npz", **batches)


def in_noh(caffe, definition: Path, phase: str, seed: int):
    """The fork's phase belongs to the process and is set through any net; only a solver can set its seed."""
    Path("idle.prototxt").write_text(IDLE)
    Path("idle_solver.prototxt").write_text(
        f'train_net: "idle.prototxt" random_seed: {seed} base_lr: 0 lr_policy: "fixed" max_iter: 1 solver_mode: CPU'
    )
    solver = caffe.SGDSolver("idle_solver.prototxt")
    getattr(solver.net, f"set_phase_{phase.lower()}")()
    return caffe.Net(str(definition))


def main(folder: Path, dialect: str, pycaffe: str) -> None:
    job = json.loads((folder / "cases.json").read_text())
    found: dict[str, Any] = {}
    for case in job["cases"]:
        for phase in job["phases"] if case["dialect"] == dialect else ():
            environment = {**os.environ, "PYTHONPATH": pycaffe, "GLOG_minloglevel": "2", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, str(folder), dialect, case["name"], phase]
            subprocess.run(command, check=True, env=environment)
            found.update(np.load(folder / f"{case['name']}.{phase}.part.npz"))
    np.savez_compressed(folder / f"{dialect}.npz", **found)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 5:
        record(place, *sys.argv[2:])
    else:
        main(place, *sys.argv[2:])
