"""Small nets for inference, and pictures to segment with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from slim import narrow

from caffe_port.net import Net

DEPLOY = "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"

TINY = """
name: "tiny"
input: "data"  input_dim: 1  input_dim: 3  input_dim: 8  input_dim: 8
input: "cls-score-masked"  input_dim: 1  input_dim: 4  input_dim: 1  input_dim: 1
layers { name: "score"  type: CONVOLUTION  bottom: "data"  top: "score"
         convolution_param { num_output: 4  kernel_size: 1 } }
layers { name: "mean"  type: POOLING  bottom: "score"  top: "mean"
         pooling_param { pool: AVE  kernel_size: 8 } }
layers { name: "sigmoid"  type: SIGMOID  bottom: "mean"  top: "cls-score-avg-sigmoid" }
layers { name: "spread"  type: UNPOOLING  bottom: "cls-score-masked"  top: "spread"
         unpooling_param { unpool: TILE  kernel_size: 8  stride: 8  unpool_size: 8 } }
layers { name: "both"  type: CONCAT  bottom: "data"  bottom: "spread"  top: "both" }
layers { name: "seg"  type: CONVOLUTION  bottom: "both"  top: "seg-score"
         convolution_param { num_output: 2  kernel_size: 1 } }
"""
"""Scores: the sigmoid of the mean of score_weight x + score_bias; segmentation: seg_weight (x, masked) + seg_bias."""


def tiny(seed: int = 0) -> Net:
    """The tiny net with parameters for which pixels and classes give different scores."""
    net = Net(TINY)
    rng = np.random.RandomState(seed)
    for name, parameter in net.state_dict().items():
        size = {"score.weight": 1e-3, "score.bias": 0.5, "seg.weight": 1.0, "seg.bias": 0.1}[name]
        parameter.copy_(torch.from_numpy(size * rng.randn(*parameter.shape)))
    net.state_dict()["seg.weight"][:, :3] /= 60
    return net


def slim(found: list[int], seed: int = 0) -> Net:
    """DecoupledNet with a 32nd of the features and random weights, which finds these classes in any picture."""
    net = scattered(Net(str(narrow(DEPLOY, "1/32"))), seed)
    state = net.state_dict()
    state["cls-score-voc.weight"] *= 1e-3  # so that the bias decides
    state["cls-score-voc.bias"][:] = -2.0
    state["cls-score-voc.bias"][found] = torch.linspace(0.5, 2, len(found))
    return net


def scattered(net: Net, seed: int = 0) -> Net:
    """The net with random parameters, such that numbers neither vanish nor grow on their way."""
    rng = np.random.RandomState(seed)
    for name, p in net.state_dict().items():
        numbers = rng.standard_normal(tuple(p.shape))
        kind = name.rpartition(".")[2]
        size, level = {"weight": ((2 / p[0].numel()) ** 0.5, 0), "scale": (0.1, 1)}.get(kind, (0.05, 0))
        p.copy_(torch.from_numpy(level + size * numbers))
    return net


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of soft blobs, uint8 (height, width, 3)."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    sheets = []
    for _ in range(3):
        waves = sum(np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.randn(6, 3) * (2, 2, 3))
        sheets.append(127 + 120 * np.tanh(waves))
    return np.stack(sheets, 2).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return path
