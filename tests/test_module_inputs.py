"""Calls of a net as a module, and their errors. Expectations are plain torch's."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

import caffe_port
from caffe_port import CaffeError
from caffe_port.net import Net

TEXT = """
name: "two"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 5 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip" type: "InnerProduct" bottom: "conv1" top: "ip"
  inner_product_param { num_output: 6 weight_filler { type: "gaussian" std: 0.3 } } }
"""
X = torch.linspace(-2, 2, 2 * 3 * 7 * 5).view(2, 3, 7, 5).sin()
KINDS = pytest.mark.parametrize("kind", [Net, caffe_port.Net])
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])


def built(kind: type[Net], text: str = TEXT) -> Net:
    caffe_port.set_random_seed(3)
    return kind(text)


def by_hand(net: Net) -> dict[str, torch.Tensor]:
    w = {k: v.detach() for k, v in net.state_dict().items()}
    conv = F.relu(F.conv2d(X, w["conv1.weight"], w["conv1.bias"]))
    return {"conv1": conv, "ip": F.linear(conv.flatten(1), w["ip.weight"], w["ip.bias"])}


CALLS = {
    "by name": (lambda net: net(data=X), {"ip"}),
    "by position": (lambda net: net(X), {"ip"}),
    "a mapping": (lambda net: net({"data": X}), {"ip"}),
    "Sequential": (lambda net: torch.nn.Sequential(net)(X), {"ip"}),
    "Sequential, a mapping": (lambda net: torch.nn.Sequential(net)({"data": X}), {"ip"}),
    "with a blob": (lambda net: net(data=X, blobs=["conv1"]), {"ip", "conv1"}),
    "by position, with blobs": (lambda net: net(X, blobs=["conv1", "ip"]), {"ip", "conv1"}),
    "a mapping, with a blob": (lambda net: net({"data": X}, blobs=("conv1",)), {"ip", "conv1"}),
}


@KINDS
@MODES
@pytest.mark.parametrize("call", CALLS)
def test_ways_to_call(kind: type[Net], mode, call: str) -> None:
    net, (run, blobs) = built(kind), CALLS[call]
    with mode():
        for _ in range(3):
            tops = run(net)
    wanted = by_hand(net)
    assert set(tops) == blobs
    for name, top in tops.items():
        assert top.requires_grad == (mode is torch.enable_grad)
        torch.testing.assert_close(top, wanted[name], rtol=1e-5, atol=1e-6)


@KINDS
@MODES
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(data=X.double()), r"input data: expected torch.float32, found torch.float64; \w"),
        (lambda net: net(X.long()), r"input data: expected torch.float32, found torch.int64"),
        (lambda net: net(data=X.to("meta")), r"input data: expected cpu, found device meta"),
        (lambda net: net(data=X[0]), r"input data: expected 4 axes, found 3 axes \(3, 7, 5\)"),
        (lambda net: net({"data": X[None]}), r"input data: expected 4 axes, found 5 axes \(1, 2, 3, 7, 5\)"),
        (lambda net: net(image=X), r"net two: expected data, found inputs image"),
        (lambda net: net({"image": X}), r"image"),
        (lambda net: net(X, X), r"2 tensors by position"),
        (lambda net: net(X, data=X), r"1 tensors by position, 1 by name"),
        (lambda net: net(X, blobs=["conv2"]), r"no blob 'conv2'.*conv1"),
        (lambda net: net(data=X[:, :2]), r"layer conv1 .*expected 3 channels.*\(2, 2, 7, 5\)"),
    ],
)
def test_invalid_inputs_are_one_error(kind: type[Net], mode, call, message: str) -> None:
    net = built(kind)
    with mode(), pytest.raises(CaffeError, match=message) as error:
        call(net)
    assert "\n" not in str(error.value)
    assert re.search(message, str(error.value))


def test_arrays_by_mapping_are_set_as_by_name() -> None:
    net = built(caffe_port.Net)
    found = net({"data": X.numpy()})["ip"].copy()
    torch.testing.assert_close(torch.from_numpy(found), by_hand(net)["ip"], rtol=1e-5, atol=1e-6)
    assert (net.blobs["data"].data == X.numpy()).all()


def test_positions_of_pycaffe_keep_their_meaning() -> None:
    net = built(caffe_port.Net)
    net.blobs["data"].data[...] = X.numpy()
    assert set(net.forward(["conv1"])) == {"conv1", "ip"}
    assert set(net.forward(None, "conv1", "relu1")) == {"conv1"}


def test_inputs_by_position_come_in_the_definitions_order() -> None:
    net = Net(
        """input: "b" input_shape { dim: 2 dim: 3 } input: "a" input_shape { dim: 2 dim: 3 }
        layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "c"
          eltwise_param { operation: SUM coeff: 1 coeff: 10 } }"""
    )
    a, b = torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.ones(2, 3)
    torch.testing.assert_close(net(b, a)["c"], a + 10 * b)
