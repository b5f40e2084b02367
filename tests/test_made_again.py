"""Activations that training computes again in place of keeping them: the same gradients, bit for bit."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from caffe_port.execution import executor
from caffe_port.net import Net

TEXT = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 16 dim: 18 dim: 21 } } }
layer { name: 't' type: 'Input' top: 't' input_param { shape { dim: 2 dim: 16 dim: 18 dim: 21 } } }
layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 32 kernel_size: 3 pad: 1 } }
layer { name: 'b' type: 'BN' bottom: 'c' top: 'c' bn_param { bn_mode: LEARN } }
layer { name: 'r' type: 'ReLU' bottom: 'c' top: 'c' }
layer { name: 'd' type: 'Convolution' bottom: 'c' top: 'd' convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: 'e' type: 'BN' bottom: 'd' top: 'd' bn_param { bn_mode: LEARN } }
layer { name: 'f' type: 'ReLU' bottom: 'd' top: 'd' }
layer { name: 'p' type: 'Pooling' bottom: 'd' top: 'p' top: 'm' pooling_param { kernel_size: 2 stride: 2 } }
layer { name: 'u' type: 'Unpooling' bottom: 'p' bottom: 'm' top: 'u'
        unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 18 unpool_w: 21 } }
layer { name: 'g' type: 'Deconvolution' bottom: 'u' top: 'g'
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: 'l' type: 'EuclideanLoss' bottom: 'g' bottom: 't' top: 'l' }
"""


@pytest.mark.parametrize("setting", ["0", "all"])
def test_the_same_gradients(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFE_PORT_WINOGRAD", setting)
    torch.manual_seed(0)
    net = Net(TEXT, phase="TRAIN", dialect="noh")
    for p in net.parameters():
        p.data.normal_(0, 0.1)
    x, results, saved, own = torch.randn(2, 16, 18, 21), [], [], executor.without_saving

    def counted(x: Tensor) -> AbstractContextManager:
        saved.append(hasattr(x, "_caffe_port_again"))
        return own(x)

    for keeps in (False, True):
        with monkeypatch.context() as m:
            if keeps:
                m.setattr(executor, "without_saving", lambda x: nullcontext())
            else:
                m.setattr(executor, "without_saving", counted)
            net.zero_grad(set_to_none=True)
            loss, _ = net.losses(x=x, t=-x)
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in net.parameters())])
    assert saved == [False, True, True]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("least", "expected"),
    [(10**6, []), (500, [set(), set(), set(), set(), {"ip.weight", "ip.bias", "small.weight", "small.bias"}])],
)
def test_free_memory_is_given_back_before_gradients_of_large_parameters(
    least: int, expected: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before both layers with large parameters, at the end of the forward pass, and before each large gradient."""
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }
        layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
            convolution_param { num_output: 20 kernel_size: 3 weight_filler { type: "xavier" } } }
        layer { name: "small" type: "Convolution" bottom: "conv" top: "small"
            convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
        layer { name: "ip" type: "InnerProduct" bottom: "small" top: "ip"
            inner_product_param { num_output: 20 weight_filler { type: "xavier" } } }
        layer { name: "loss" type: "Reduction" bottom: "ip" top: "loss" loss_weight: 1 }
    """
    monkeypatch.setattr(executor, "LARGE", least)
    net = Net(text, phase="TRAIN", dialect="bvlc")
    seen: list[set[str]] = []
    monkeypatch.setattr(
        executor, "give_back", lambda: seen.append({n for n, p in net.named_parameters() if p.grad is not None})
    )
    net.losses(x=torch.randn(2, 3, 5, 7))[0].backward()
    assert seen == expected
