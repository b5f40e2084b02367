"""Layers of Caffe that torch lacks, as functions and modules which exported files contain.

The text of each, with what it uses of the others, is copied into a file that needs it: nothing here may use names but
``math``, ``torch``, ``Tensor``, ``nn``, ``F`` and those of this module and of ``source_detection``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__: list[str] = []


# -- factors and normalizations ----------------------------------------------------------------------------------------


class Scale(nn.Module):
    """x * weight + bias; both have the shape of x's last axes, 1 where they are the same for all."""

    def __init__(self, *shape: int, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape)) if weight else None
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


class Normalize(nn.Module):
    """x / sqrt(sum of squares + eps) * weight, the sum over channels, or (across) over all values of an item."""

    def __init__(self, *shape: int, eps: float, across: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps, self.across = eps, across

    def forward(self, x: Tensor) -> Tensor:
        over = tuple(range(1, x.dim())) if self.across else (1,)
        return x / ((x * x).sum(over, keepdim=True) + self.eps).sqrt() * self.weight


def normalize_batch(x: Tensor, eps: float) -> Tensor:
    """x minus its channel's mean, divided by its deviation, both of this batch (Caffe's BatchNorm and BN)."""
    over = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def normalize_mean_variance(x: Tensor, eps: float, *, across: bool, variance: bool = True) -> Tensor:
    """Each channel (across: item) minus its mean, divided by its deviation + eps (Caffe's MVN)."""
    over = tuple(range(1 if across else 2, x.dim()))
    x = x - x.mean(over, keepdim=True)
    return x / ((x * x).mean(over, keepdim=True).sqrt() + eps) if variance else x


def local_response_within(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """x / (1 + alpha * mean of squares in a square of pixels)^beta (Caffe's LRN within a channel)."""
    return x * (1 + alpha * F.avg_pool2d(x * x, size, 1, size // 2)) ** -beta


def local_response_in_place(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """(k + alpha * mean of the squares of channels)^(-2 beta): Caffe's LRN where its top is its bottom."""
    squares = F.pad((x * x).unsqueeze(1), (0, 0, 0, 0, size // 2, size // 2))
    return (k + alpha * F.avg_pool3d(squares, (size, 1, 1), stride=1).squeeze(1)) ** (-2 * beta)


# -- windows -----------------------------------------------------------------------------------------------------------


def over_windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int, int, int], fill: float, ceil: bool
) -> Tensor:
    """x with ``fill`` around it, as far as Caffe's windows reach; pad is (left, right, top, bottom).

    Caffe rounds the number of windows up, and drops one that would start in the padding at the end.
    """
    left, right, top, bottom = pad
    sides = []
    for n, k, s, before, after in zip(x.shape[2:], kernel, stride, (top, left), (bottom, right), strict=True):
        steps = n + before + after - k
        count = (-(-steps // s) if ceil else steps // s) + 1
        count -= any(pad) and (count - 1) * s >= n + before
        sides.append((before, (count - 1) * s + k - n - before))
    return F.pad(x, (*sides[1], *sides[0]), value=fill)


def max_pool_caffe(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    ceil: bool = True,
) -> tuple[Tensor, Tensor]:
    """Max pooling over Caffe's windows, and the position of each maximum in x's plane; -3.4e38 for an empty window."""
    padded = over_windows(x, kernel, stride, pad, torch.finfo(x.dtype).min, ceil)
    y, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    width = padded.shape[3]
    return y, (index // width - pad[2]) * x.shape[3] + index % width - pad[0]


def average_pool_caffe(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    ceil: bool = True,
    counts_padding: bool = True,
) -> Tensor:
    """Average pooling over Caffe's windows: the padding counts, what lies beyond it does not."""
    total = F.avg_pool2d(over_windows(x, kernel, stride, pad, 0, ceil), kernel, stride, divisor_override=1)
    left, right, top, bottom = pad
    windows = zip(x.shape[2:], kernel, stride, (top, left), (bottom, right), total.shape[2:], strict=True)
    counts = []
    for n, k, s, before, after, m in windows:
        start = torch.arange(m, device=x.device) * s - before
        if counts_padding:
            counts.append((start + k).clamp(max=n + after) - start)
        else:
            counts.append((start + k).clamp(max=n) - start.clamp(min=0))
    return total / (counts[0][:, None] * counts[1]).to(x.dtype)


def stochastic_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], *, ceil: bool = True) -> Tensor:
    """The mean of each window weighted by its own values: Caffe's STOCHASTIC pooling in a test."""
    x = over_windows(x, kernel, stride, (0, 0, 0, 0), 0, ceil)
    total = F.avg_pool2d(x, kernel, stride, divisor_override=1)
    squares = F.avg_pool2d(x * x, kernel, stride, divisor_override=1)
    return squares / total.masked_fill(total <= 0, math.inf)


def pyramid_pool(x: Tensor, height: int, *, average: bool) -> Tensor:
    """Pooling into 1 x 1, 2 x 2, 4 x 4 ... windows, all values in one row (Caffe's SPP)."""
    levels = []
    for level in range(height):
        bins = 2**level
        kernel = -(-x.shape[2] // bins), -(-x.shape[3] // bins)
        pad = [(k * bins - n + 1) // 2 for k, n in zip(kernel, x.shape[2:], strict=True)]
        sides = (pad[1], pad[1], pad[0], pad[0])
        if average:
            levels.append(average_pool_caffe(x, kernel, kernel, sides))
        else:
            levels.append(max_pool_caffe(x, kernel, kernel, sides)[0])
    return levels[0] if height == 1 else torch.cat([y.flatten(1) for y in levels], 1)


def unpool(x: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros of ``size`` with each value of x at its index in its plane; of equal indices the last stays."""
    x, index = x.flatten(2), index.flatten(2).long()
    order = torch.arange(1, x.shape[2] + 1, device=x.device).expand_as(index)
    last = torch.zeros((*x.shape[:2], size[0] * size[1]), dtype=torch.int64, device=x.device)
    last.scatter_reduce_(2, index, order, "amax")
    y = torch.where(last > 0, x.gather(2, (last - 1).clamp(min=0)), 0)
    return y.unflatten(2, size)


def unpool_corners(x: Tensor, stride: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Zeros of ``size`` with each value of x at its window's top left (Caffe's Unpooling without switches)."""
    rows, columns = (
        (torch.arange(n, device=x.device) * s).clamp(max=m - 1)
        for n, s, m in zip(x.shape[2:], stride, size, strict=True)
    )
    return unpool(x, (rows[:, None] * size[1] + columns).expand_as(x), size)


def unpool_spread(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int], *, divide: bool
) -> Tensor:
    """Every window filled with its value, or (divide) with its share of it (Caffe's Unpooling, TILE and AVE)."""
    if divide:
        starts = (torch.arange(n, device=x.device) * s for n, s in zip(x.shape[2:], stride, strict=True))
        height, width = (
            ((start + k).clamp(max=m) - start).clamp(min=1) for start, k, m in zip(starts, kernel, size, strict=True)
        )
        x = x / (height[:, None] * width)
    y = F.conv_transpose2d(x, x.new_ones(x.shape[1], 1, *kernel), stride=stride, groups=x.shape[1])
    return F.pad(y, (0, size[1] - y.shape[3], 0, size[0] - y.shape[2]))


def windows_as_channels(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """(N, C, ...) to (N, C * kernel numbers, windows ...): what a convolution multiplies (Caffe's Im2col)."""
    axes = len(kernel)
    x = F.pad(x, [side for p in reversed(pad) for side in (p, p)])
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
    return x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes)).flatten(1, 1 + axes)


# -- values moved or chosen --------------------------------------------------------------------------------------------


def largest(x: Tensor, axis: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values along an axis and their indices; of equal ones Caffe takes the last first."""
    values, index = x.flip(axis).sort(dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), (x.shape[axis] - 1 - index.narrow(axis, 0, k)).to(x.dtype)


def reorganize(x: Tensor, stride: int) -> Tensor:
    """Pixels into channels in the order of Darknet's loops, which take x for stride times as high and wide."""
    n, c, h, w = x.shape
    x = x.reshape(n, c // stride**2, h, stride, w, stride).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * stride**2, h // stride, w // stride)


def reorganize_back(x: Tensor, stride: int) -> Tensor:
    """Channels into pixels, the inverse of Darknet's reorganization."""
    n, c, h, w = x.shape
    x = x.reshape(n, stride, stride, c // stride**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // stride**2, h * stride, w * stride)


def resize_one_channel(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing with aligned corners, rounded as Caffe rounds: x may hold labels, which are cut to integers."""
    for axis, m in ((3, size[1]), (2, size[0])):
        n = x.shape[axis]
        at = torch.tensor((n - 1) / (m - 1) if m > 1 else 0.0) * torch.arange(m, dtype=torch.float32)
        low = at.long()
        share = (at - low).to(x).view(-1, *(1,) * (3 - axis))
        first, second = (x.index_select(axis, i.to(x.device)) for i in (low, (low + 1).clamp(max=n - 1)))
        x = (1 - share) * first + share * second
    return x


def resize_nearest(x: Tensor, size: tuple[int, int], first_axis: int, *, corners: bool, centres: bool) -> Tensor:
    """The nearest pixel below, or (corners) the nearest pixel, as in TensorFlow 1."""
    for axis, m in zip((first_axis, first_axis + 1), size, strict=True):
        n, aligned = x.shape[axis], corners and m > 1
        at = torch.arange(m, dtype=torch.float32)
        at = (at + 0.5 if centres else at) * torch.tensor((n - 1) / (m - 1) if aligned else n / m)
        index = ((at + 0.5).floor() if corners else at.floor()).long().clamp(0, n - 1)
        x = x.index_select(axis, index.to(x.device))
    return x


# -- recurrence --------------------------------------------------------------------------------------------------------


def lstm_step(cell: Tensor, gates: Tensor, go_on: Tensor) -> tuple[Tensor, Tensor]:
    """One step of Caffe's LSTM: the new cell and hidden state. go_on is 0 where a sequence begins, else 1."""
    i, f, o, g = gates.chunk(4, -1)
    cell = torch.sigmoid(f) * go_on * cell + torch.sigmoid(i) * torch.tanh(g)
    return cell, torch.sigmoid(o) * torch.tanh(cell)


class LSTMCaffe(nn.Module):
    """Caffe's LSTM over sequences (steps, streams, ...), with marks (steps, streams) that are 0 where one begins."""

    def __init__(self, inputs: int, size: int, static: int = 0) -> None:
        super().__init__()
        self.size = size
        self.inputs = nn.Linear(inputs, 4 * size)
        self.static = nn.Linear(static, 4 * size, bias=False) if static else None
        self.hidden = nn.Linear(size, 4 * size, bias=False)

    def forward(
        self, x: Tensor, go_on: Tensor, static: Tensor | None = None, states: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden states of all steps, then the last hidden state and cell, from ``states`` or from zeros."""
        entering = self.inputs(x.flatten(2))
        if self.static is not None and static is not None:
            entering = entering + self.static(static.flatten(1))
        zero = x.new_zeros(x.shape[1], self.size)
        hidden, cell = (state[0] for state in states) if states else (zero, zero)
        found = []
        for entry, mark in zip(entering, go_on[..., None], strict=True):
            cell, hidden = lstm_step(cell, entry + self.hidden(hidden * mark), mark)
            found.append(hidden)
        return torch.stack(found), hidden[None], cell[None]


class RNNCaffe(nn.Module):
    """Caffe's RNN over sequences (steps, streams, ...), with marks (steps, streams) that are 0 where one begins."""

    def __init__(self, inputs: int, size: int, static: int = 0) -> None:
        super().__init__()
        self.size = size
        self.inputs = nn.Linear(inputs, size)
        self.static = nn.Linear(static, size, bias=False) if static else None
        self.hidden = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(size, size)

    def forward(
        self, x: Tensor, go_on: Tensor, static: Tensor | None = None, states: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """The outputs of all steps, then the last hidden state, from ``states`` or from zeros."""
        entering = self.inputs(x.flatten(2))
        if self.static is not None and static is not None:
            entering = entering + self.static(static.flatten(1))
        hidden = states[0][0] if states else x.new_zeros(x.shape[1], self.size)
        found = []
        for entry, mark in zip(entering, go_on[..., None], strict=True):
            hidden = torch.tanh(entry + self.hidden(hidden * mark))
            found.append(hidden)
        return torch.tanh(self.output(torch.stack(found))), hidden[None]
