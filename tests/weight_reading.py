"""What is done with the hostile weight and state files of the readers' rows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from caffe_port.formats import open_weights
from caffe_port.formats.solverstate import read_solverstate

NET = """
name: "n" input: "data" input_shape { dim: 1 dim: 1 dim: 2 dim: 2 }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "ip" top: "bn" }
"""


@cache
def net() -> Any:
    from caffe_port import Net

    return Net(NET)


def read_weights(path: Path) -> None:
    """What the commands and Net do with a weight file."""
    weights = open_weights(path)
    for layer in weights.layers:
        for array in (*layer.blobs, *layer.diffs):
            if array is not None:
                array.sum()
    net().load(path, ignore_mismatched=True)
    weights.state_dict({"ip": "InnerProduct"})


def read_state(path: Path) -> None:
    state = read_solverstate(path)
    assert state.iter >= 0 and state.current_step >= 0
    for array in state.history:
        array.sum()
