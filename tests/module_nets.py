"""The net of the tests of torch's conventions, and the same in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import caffe_port
from caffe_port.net import Net

TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 }
  bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "a.conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 5 kernel_size: 2 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "norm" type: "LRN" bottom: "conv2" top: "norm" lrn_param { local_size: 3 alpha: 0.5 } }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool" top: "ip1"
  inner_product_param { num_output: 6 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "relu3" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
"""
LAYERS = ["conv1", "relu1", "a.conv2", "relu2", "norm", "pool", "ip1", "relu3", "ip2", "prob"]
X = torch.linspace(-2, 2, 2 * 3 * 9 * 7).view(2, 3, 9, 7).mul(7).sin()


def built(kind: type[Net] = Net, text: str = TEXT) -> Net:
    caffe_port.set_random_seed(3)
    return kind(text)


def weights(net: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def by_hand(w: dict[str, Tensor], x: Tensor = X, head: torch.nn.Module | None = None) -> dict[str, Tensor]:
    """All blobs."""
    conv1 = F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"]))
    conv2 = F.relu(F.conv2d(conv1, w["a.conv2.weight"], w["a.conv2.bias"]))
    sums = torch.stack([conv2[:, max(0, c - 1) : c + 2].square().sum(1) for c in range(5)], 1)
    norm = conv2 * (1 + 0.5 / 3 * sums) ** -0.75
    pool = F.max_pool2d(norm, 2, ceil_mode=True)
    ip1 = F.relu(F.linear(pool.flatten(1), w["ip1.weight"], w["ip1.bias"]))
    ip2 = F.linear(ip1, w["ip2.weight"], w["ip2.bias"]) if head is None else head(ip1)
    found = {"conv1": conv1, "conv2": conv2, "norm": norm, "pool": pool, "ip1": ip1, "ip2": ip2}
    return {**found, "prob": torch.softmax(ip2, 1)}


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=tolerance, atol=tolerance)
