"""Trains small nets in processes that are killed: ``python tests/killing.py FOLDER`` obeys orders, one JSON a line.

Torch is imported once; every training is a fork. A net has all that a resume must bring back: shuffled lists, mirrored
and cropped pictures, HDF5 rows, dropout, noise, running statistics, recurrent states, momentum, iter_size, multistep,
an average of losses, a test net that reads data of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch

from caffe_port.solver import Solver, snapshot
from caffe_port.solver.distributed import join
from caffe_port.solver.log import Log
from caffe_port.solver.snapshot import Snapshots
from caffe_port.solver.state import SolverState

TRANSFORM = "transform_param { mirror: true crop_size: 9 scale: 0.02 mean_value: 100 }"
BVLC = f"""
layer {{
  name: "pictures" type: "ImageData" top: "data" top: "label" include {{ phase: TRAIN }} {TRANSFORM}
  image_data_param {{ source: "list.txt" batch_size: 3 shuffle: true rand_skip: 4 }}
}}
layer {{
  name: "pictures" type: "ImageData" top: "data" top: "label" include {{ phase: TEST }} {TRANSFORM}
  image_data_param {{ source: "list.txt" batch_size: 2 shuffle: true }}
}}
layer {{
  name: "rows" type: "HDF5Data" top: "rows" include {{ phase: TRAIN }}
  hdf5_data_param {{ source: "rows.txt" batch_size: 3 shuffle: true }}
}}
layer {{
  name: "rows" type: "HDF5Data" top: "rows" include {{ phase: TEST }}
  hdf5_data_param {{ source: "rows.txt" batch_size: 2 }}
}}
layer {{
  name: "noise" type: "DummyData" top: "noise" top: "goes_on" include {{ phase: TRAIN }}
  dummy_data_param {{
    shape {{ dim: 3 dim: 4 }} data_filler {{ type: "gaussian" std: 0.1 }}
    shape {{ dim: 3 dim: 1 }} data_filler {{ value: 1 }}
  }}
}}
layer {{
  name: "noise" type: "DummyData" top: "noise" top: "goes_on" include {{ phase: TEST }}
  dummy_data_param {{
    shape {{ dim: 2 dim: 4 }} data_filler {{ value: 0 }}
    shape {{ dim: 2 dim: 1 }} data_filler {{ value: 1 }}
  }}
}}
layer {{
  name: "steps" type: "Reshape" bottom: "rows" top: "steps"
  reshape_param {{ shape {{ dim: 0 dim: 1 dim: -1 }} }}
}}
layer {{
  name: "lstm" type: "LSTM" bottom: "steps" bottom: "goes_on" top: "lstm"
  recurrent_param {{ num_output: 4 weight_filler {{ type: "uniform" min: -0.3 max: 0.3 }} }}
}}
layer {{ name: "b" type: "Reshape" bottom: "lstm" top: "b" reshape_param {{ shape {{ dim: 0 dim: -1 }} }} }}
layer {{
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 stride: 2 weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "drop" type: "Dropout" bottom: "conv" top: "conv" }}
layer {{
  name: "from_pictures" type: "InnerProduct" bottom: "conv" top: "a"
  inner_product_param {{ num_output: 4 weight_filler {{ type: "gaussian" std: 0.1 }} }}
}}
layer {{ name: "sum" type: "Eltwise" bottom: "a" bottom: "b" bottom: "noise" top: "sum" }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }}
layer {{
  name: "accuracy" type: "Accuracy" bottom: "sum" bottom: "label" top: "accuracy" include {{ phase: TEST }}
}}
"""
NOH = f"""
layers {{
  name: "pictures" type: IMAGE_SEG_DATA top: "data" top: "mask" top: "size" {TRANSFORM}
  image_data_param {{ source: "masks.txt" batch_size: 2 shuffle: true label_type: PIXEL }}
}}
layers {{ name: "silence" type: SILENCE bottom: "size" }}
layers {{
  name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 weight_filler {{ type: "gaussian" std: 0.1 }} }}
}}
layers {{
  name: "norm" type: BN bottom: "conv" top: "conv"
  bn_param {{ scale_filler {{ type: "constant" value: 1 }} shift_filler {{ type: "constant" value: 0.001 }} }}
}}
layers {{ name: "relu" type: RELU bottom: "conv" top: "conv" }}
layers {{ name: "drop" type: DROPOUT bottom: "conv" top: "conv" }}
layers {{
  name: "score" type: CONVOLUTION bottom: "conv" top: "score"
  convolution_param {{ num_output: 4 kernel_size: 1 weight_filler {{ type: "gaussian" std: 0.1 }} }}
}}
layers {{
  name: "loss" type: SOFTMAX_LOSS bottom: "score" bottom: "mask" top: "loss"
  loss_param {{ ignore_label: 255 }}
}}
"""
SOLVER = """
net: "{net}.prototxt" random_seed: {seed} max_iter: {iterations} iter_size: 2 base_lr: 0.05 momentum: 0.9
weight_decay: 0.001 lr_policy: "multistep" gamma: 0.5 stepvalue: 5 stepvalue: 11 average_loss: 3 display: 1
test_iter: 2 test_interval: 3 snapshot: 2 snapshot_prefix: "{folder}/snap"
"""
NETS = {"bvlc": BVLC, "noh": NOH}


def write_nets_and_data(place: Path) -> None:
    """Write the nets and their data."""
    numbers = np.random.RandomState(3)
    for i in range(7):
        picture = numbers.randint(0, 256, (11, 12, 3), np.uint8)
        assert cv2.imwrite(str(place / f"{i}.png"), picture)
        assert cv2.imwrite(str(place / f"{i}_mask.png"), picture[..., 0] % 4)
    (place / "list.txt").write_text("".join(f"{i}.png {i % 4}\n" for i in range(7)))
    (place / "masks.txt").write_text("".join(f"{i}.png {i}_mask.png\n" for i in range(7)))
    for i in range(2):
        with h5py.File(place / f"rows{i}.h5", "w") as file:
            file["rows"] = numbers.standard_normal((4 + i, 4)).astype(np.float32)
    (place / "rows.txt").write_text("rows0.h5\nrows1.h5\n")
    for name, net in NETS.items():
        (place / f"{name}.prototxt").write_text(net)


class NumbersLog(Log):
    """Appends the numbers that a run logs to a file, which a kill does not remove."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path).open("a"))  # noqa: SIM115
        self.quiet = False

    def line(self, text: str, source: str = "solver.cpp", severity: str = "I") -> None:
        if text.startswith(("Iteration", "Test", "Train")) and not self.quiet:
            print(text, file=self.file, flush=True)

    def loss(self, iteration: int, loss: float, **more: Any) -> None:
        self.line(f"Iteration {iteration}: loss {loss!r}")

    def scores(self, phase: str, scores: Iterable[Any]) -> None:
        self.line(f"{phase} {[(s.name, s.value) for s in scores]!r}")


def train(net: str, folder: Path, iterations: int = 16, seed: int = 5, *, anew: bool = False) -> None:
    """Train in ``folder``, from the last whole snapshot if there is one, or ``anew``."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    text = SOLVER.format(net=net, folder=folder, iterations=iterations, seed=seed)
    group = join(torch.device("cpu"))
    solver = Solver(text, log=NumbersLog(folder / "diary"), group=group)
    last = snapshot.latest(folder / "snap")
    if last and not anew:
        solver.restore(last)
    solver.solve()
    group.leave()


def killed_before(event: int, *, of: int) -> None:
    """Exit before the ``event``-th change of the folder while the snapshot of iteration ``of`` is written."""
    write, left = Snapshots.write, [0]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        done_to_files = name in ("os.rename", "os.remove") or (name == "open" and arguments[1] not in (None, "r", "rb"))
        if left[0] and done_to_files:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    def dying(self: Snapshots, state: SolverState, iteration: int, **options: Any) -> Path:
        left[0] = event if state.iter == of else 0
        path = write(self, state, iteration, **options)
        left[0] = 0
        return path

    Snapshots.write = dying  # type: ignore[method-assign]
    sys.addaudithook(hook)


def forked(order: dict[str, Any]) -> dict[str, Any]:
    """Train in a forked process with ``order``, or in several, one for each rank; returns how it ended."""
    group = order.get("group", {"WORLD_SIZE": "1"})
    children = [child(order, group | {"RANK": str(rank)}) for rank in range(int(group["WORLD_SIZE"]))]
    if "after" in order:
        time.sleep(order["after"])
        for one in children:
            os.kill(one, signal.SIGKILL)
    ends = [os.waitpid(one, 0)[1] for one in children]
    return {
        "killed": any(os.WIFSIGNALED(status) for status in ends),
        "failed": any(os.WIFEXITED(status) and os.WEXITSTATUS(status) for status in ends),
    }


def child(order: dict[str, Any], environment: dict[str, str]) -> int:
    """The number of the process that trains."""
    number = os.fork()
    if number:
        return number
    os.environ.update(environment)
    try:
        if "event" in order:
            killed_before(order["event"], of=order["of"])
        train(order["net"], Path(order["folder"]), **order["more"])
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    write_nets_and_data(Path())
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)


def port() -> str:
    """A network port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
