"""Where values are equal, real Caffe's choice is the one; the oracle counts it out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import caffe_port

NET = """
force_backward: true
{inputs}
layer {{ name: "max" type: "Eltwise" {bottoms} top: "y" eltwise_param {{ operation: MAX }} }}
"""
INPUT = 'layer {{ name: "{0}" type: "Input" top: "{0}" input_param {{ shape {{ dim: 2 dim: 3 dim: 5 dim: 7 }} }} }}'


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_eltwise_max(names: str) -> None:
    """Of the first two bottoms the second wins, then only what is larger replaces it (eltwise_layer.cpp)."""
    bottoms = " ".join(f'bottom: "{name}"' for name in names)
    net = caffe_port.Net(NET.format(inputs="\n".join(INPUT.format(n) for n in names), bottoms=bottoms), dialect="bvlc")
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (len(names), 2, 3, 5, 7)).astype(np.float32)
    seed = rng.standard_normal(values.shape[1:]).astype(np.float32)
    for name, value in zip(names, values, strict=True):
        net.blobs[name].data[...] = value
    net.forward()
    net.backward(y=seed)
    ranks = np.array([1, 0, *range(2, len(names))])
    order = np.where(values == values.max(0), ranks[:, None, None, None, None], 99)
    assert (net.blobs["y"].data == values.max(0)).all()
    for i, name in enumerate(names):
        assert (net.blobs[name].diff == seed * (order.argmin(0) == i)).all()
