"""LRN's window sum for every window, against the sum written out."""

from __future__ import annotations

import pytest
import torch

from caffe_port.net import Net

TEXT = """input: "x" input_shape {{ dim: 2 dim: 7 dim: 5 dim: 3 }}
layer {{ name: "n" type: "LRN" bottom: "x" top: "y" lrn_param {{ local_size: {} alpha: 2.5 beta: {} k: 1.5 }} }}"""


@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11, 13, 15, 2_000_001])
def test_window_of_any_size(size: int, beta: float) -> None:
    net = Net(TEXT.format(size, beta)).double()
    x = torch.linspace(-3, 2, 210, dtype=torch.float64).view(2, 7, 5, 3).cos().requires_grad_()
    reach = size // 2
    sums = [x[:, max(0, c - reach) : c + reach + 1].square().sum(1) for c in range(7)]
    wanted = x * (1.5 + 2.5 / size * torch.stack(sums, 1)) ** -beta
    found = net(x)["y"]
    torch.testing.assert_close(found, wanted)
    seed = torch.linspace(0, 4, 210, dtype=torch.float64).view_as(x).sin()
    once, theirs = (torch.autograd.grad(y, x, seed, create_graph=True)[0] for y in (found, wanted))
    torch.testing.assert_close(once, theirs)
    twice, theirs = (torch.autograd.grad(g.square().sum(), x)[0] for g in (once, theirs))
    torch.testing.assert_close(twice, theirs)
