"""Normalization by statistics of the batch, of an item, or of neighbouring channels.

Source: bn_layer.cpp (noh), batch_norm_layer.cpp, mvn_layer.cpp, lrn_layer.cpp.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.capabilities import FusesReLU
from caffe_port.layers.functions import Function, made_again, symbolic
from caffe_port.spec import elementwise


def by_batch(
    x: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
) -> Tensor:
    """Each channel minus its mean, divided by its standard deviation; then times ``scale``, plus ``shift``.

    Unlike F.batch_norm it accepts a channel of one value. The batch's statistics, the variance unbiased, are
    written to ``mean`` and ``variance``.
    """
    if scale is not None and shift is not None and mean is None and by_pixel(x):
        return _ByPixel.run(x, scale, shift, eps, False)
    x = x.contiguous()  # channels-last, torch's sums over 10^5 pixels are off by 1e-4
    return torch.batch_norm(x, scale, shift, mean, variance, True, 1, eps, torch.backends.cudnn.enabled)


def by_pixel(x: Tensor) -> bool:
    """Whether the layout is channels-last, on the CPU."""
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or symbolic(x):
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


_BLOCK = 1 << 18
"""Number of values in a block: few enough to stay in the cache between steps."""


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Runs of pixels, (pixels, channels) each."""
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    return rows.split(max(1, _BLOCK // rows.shape[1]))


def _write(y: Tensor, x: Tensor, shift: Tensor, mean: Tensor, factor: Tensor, relu: bool) -> Tensor:
    blocks = _blocks(x)
    room = torch.empty_like(blocks[0])
    for block, out in zip(blocks, _blocks(y), strict=True):
        torch.addcmul(shift, torch.sub(block, mean, out=room[: len(block)]), factor, out=out)
        if relu:
            out.relu_()
    return y


def _again_by_pixel(node: Any) -> Tensor:
    """The output of a :class:`_ByPixel` from what it keeps for its backward pass."""
    x, _, shift, mean, _, factor = node.saved_tensors
    return _write(torch.empty_like(x), x.detach(), shift, mean, factor, node.relu)


class _ByPixel(Function):
    """Normalization, followed by ReLU if ``relu``, in channels-last layout.

    Block by block, so that each pass reads memory twice and writes it once. Block sums keep the statistics accurate.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, relu: bool) -> Tensor:
        y, blocks, sums = torch.empty_like(x), _blocks(x), []
        some, buffer = blocks[0][:256].mean(0), torch.empty_like(blocks[0])
        for block in blocks:  # minus some pixels' mean, so that a large mean loses no digits
            d = torch.sub(block, some, out=buffer[: len(block)])
            sums += [d.sum(0), d.mul_(d).sum(0)]
        first, second = torch.stack(sums).view(-1, 2, len(some)).sum(0) / (x.numel() // len(some))
        mean, inverse = some + first, (second - first * first).clamp_(min=0).add_(eps).rsqrt_()
        factor = scale * inverse
        ctx.save_for_backward(x, scale, shift, mean, inverse, factor)
        ctx.eps, ctx.relu = eps, relu
        for block, out in zip(blocks, _blocks(y), strict=True):
            torch.addcmul(shift, torch.sub(block, mean, out=buffer[: len(block)]), factor, out=out)
            if relu:
                out.relu_()
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale, shift, mean, inverse, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of higher order
            y = torch.batch_norm(x.contiguous(), scale, shift, None, None, True, 1, ctx.eps, False)
            y, of, wanted = y.relu() if ctx.relu else y, (x, scale, shift), ctx.needs_input_grad[:3]
            needed = [t for t, want in zip(of, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(y, needed, grad, create_graph=True))
            return *(next(found) if want else None for want in wanted), None, None
        grad = grad.contiguous(memory_format=torch.channels_last)
        blocks, grads, sums = _blocks(x), _blocks(grad), []
        buffer, other = torch.empty_like(blocks[0]), torch.empty_like(blocks[0])

        def centred(block: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            """The block minus the mean, and the gradient after ReLU."""
            d = torch.sub(block, mean, out=buffer[: len(block)])
            if not ctx.relu:
                return d, g
            y = torch.addcmul(shift, d, factor, out=other[: len(block)])
            return d, torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=y)

        for block, g in zip(blocks, grads, strict=True):
            d, g = centred(block, g)
            sums += [g.sum(0), d.mul_(g).sum(0)]
        first, second = torch.stack(sums).view(-1, 2, len(mean)).sum(0)
        dx = None
        if ctx.needs_input_grad[0]:
            count = x.numel() // len(mean)
            slope, constant = -factor * inverse * inverse * second / count, -factor * first / count
            dx = torch.empty_like(x)
            for block, g, out in zip(blocks, grads, _blocks(dx), strict=True):
                d, g = centred(block, g)
                torch.addcmul(constant, d, slope, out=out).addcmul_(g, factor)
        return dx, second * inverse, first, None, None


@layer("BN")
class BN(elementwise.BN, Layer, FusesReLU):
    """Batch normalization as the fork has it.

    LEARN always normalises with the statistics of the current batch, in TEST too; tops two and three give its mean and
    (biased) variance, shape (1, C, 1, 1). INFERENCE is scale * x + shift. Parameters: scale and shift, (1, C, 1, 1).

    The original takes the variance as E[x^2] - E[x]^2 in single precision, which for a channel of one repeated value
    can come out negative and make it nan; here it is zero then.
    """

    eps = 1e-9

    def setup(self, x: Shape) -> None:
        super().setup(x)
        self.overwrites_diffs = self.dialect.bn_overwrites_diffs

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        return None if self.learn else (self.scale.detach().flatten(), self.shift.detach().flatten())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = x if x.dim() == 4 else x.reshape(*x.shape, *(1,) * (4 - x.dim()))
        if not self.learn:
            return (x * self.scale).add_(self.shift)
        y = by_batch(x, self.eps, scale=self.scale.flatten(), shift=self.shift.flatten())
        if self.n_tops == 1:
            return y
        with torch.no_grad():
            variance, mean = torch.var_mean(x.contiguous(), (0, 2, 3), correction=0, keepdim=True)
        return (y, mean, variance)[: self.n_tops]

    def with_relu(self, x: Tensor) -> Tensor | None:
        if not self.learn or self.n_tops > 1 or not by_pixel(x):
            return None
        y = _ByPixel.run(x, self.scale.flatten(), self.shift.flatten(), self.eps, True)
        return made_again(y, partial(_again_by_pixel, y.grad_fn)) if y.requires_grad else y


@layer("BatchNorm")
class BatchNorm(elementwise.BatchNorm, Layer):
    """(x - mean) / sqrt(variance + eps) for each channel (axis 1).

    In TRAIN, or with ``use_global_stats: false``, by the statistics of the current batch, which also enter the
    blobs: mean and variance are sums that decay by ``moving_average_fraction`` each pass, ``scale_factor`` is the sum
    of their weights. The variance enters unbiased (m / (m - 1)); the batch is normalised by the biased one. In TEST the
    blobs, divided by the scale factor, are the statistics.

    With ``add_eps_before_sqrt: false`` (not in BVLC 1.0) it is (x - mean) / (sqrt(variance) + eps), by the blobs only.
    With ``scale_bias`` it is NVCaffe's: the result times ``scale`` plus ``shift``; the blobs are the statistics
    themselves, which decay by their fraction, the biased variance with eps added, after two passes that replace them.
    """

    eps: float

    def setup(self, x: Shape) -> None:
        super().setup(x)
        self.passes = 0
        self.refuse(
            self.eps_outside and (not self.uses_blobs() or self.scale is not None),
            "add_eps_before_sqrt: false by the statistics of a batch",
            expected="true, or statistics that are given",
        )
        if self.scale is not None:
            self.eps = max(self.eps, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        if self.uses_blobs():
            if self.eps_outside:
                mean, variance = (t.view(-1, *(1,) * (x.dim() - 2)) for t in self.statistics())
                return (x - mean) / (variance.sqrt() + self.eps)
            mean, variance = self.statistics()
            return F.batch_norm(x, mean, variance, self.scale, self.shift, eps=self.eps)
        if self.scale is not None:
            return self._scaled(x)
        mean, variance = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        y = by_batch(x, self.eps, mean=mean, variance=variance)
        with torch.no_grad():
            self.scale_factor.mul_(self.fraction).add_(1)
            self.mean.mul_(self.fraction).add_(mean)
            self.variance.mul_(self.fraction).add_(variance if x.numel() > x.shape[1] else 0)
        return y

    def _scaled(self, x: Tensor) -> Tensor:
        mean, variance = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        y = by_batch(x, self.eps, mean=mean, variance=variance)
        over = (-1, *(1,) * (x.dim() - 2))
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            biased = variance * ((count - 1) / count) + self.eps
            keep = self.fraction if self.passes > 1 else 0.0
            self.mean.mul_(keep).add_(mean, alpha=1 - keep)
            self.variance.mul_(keep).add_(biased, alpha=1 - keep)
        self.passes += 1
        return y * self.scale.view(over) + self.shift.view(over)

    @property
    def keeps_state(self) -> bool:
        return not self.uses_blobs()

    def uses_blobs(self) -> bool:
        """Whether the statistics come from the blobs, not from the batch."""
        return not self.training if self.use_global_stats is None else self.use_global_stats

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The mean and variance from the blobs."""
        if self.scale is not None:
            return self.mean, self.variance
        weight = torch.where(self.scale_factor == 0, self.scale_factor, 1 / self.scale_factor)
        return self.mean * weight, self.variance * weight

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if not self.uses_blobs():
            return None
        mean, variance = self.statistics()
        scale = 1 / (variance.sqrt() + self.eps) if self.eps_outside else torch.rsqrt(variance + self.eps)
        if self.scale is not None:
            scale = scale * self.scale
            return scale, self.shift - mean * scale
        return scale, -mean * scale


class _Standardized(Function):
    """Rows minus their mean, divided by their standard deviation + eps; the gradient includes eps in the deviation."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        factor = 1 / ((centred * centred).mean(1, keepdim=True).sqrt() + eps)
        ctx.save_for_backward(x, mean, factor)
        return centred.mul_(factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, mean, factor = ctx.saved_tensors
        wanted = (True, False, False)
        backward = torch.ops.aten.native_layer_norm_backward
        return backward(grad.contiguous(), x, x.shape[1:], mean, factor, None, None, wanted)[0], None


class _Centred(Function):
    """Rows without their mean, whose gradient passes unchanged (mvn_layer.cpp of noh omits the mean there)."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@layer("MVN")
class MVN(elementwise.MVN, Layer):
    """Each item's channels (``across_channels``: items) minus their mean, divided by their standard deviation + eps.

    The top always has four axes. The fork takes the variance as E[x^2] - E[x]^2, which can be negative; here it
    cannot.
    """

    def forward(self, x: Tensor) -> Tensor:
        (shape,) = self.reshape(tuple(x.shape))
        rows = x.reshape(shape[0] if self.across_channels else shape[0] * shape[1], -1)
        if self.normalize_variance:
            y = _Standardized.run(rows, self.eps)
        elif self.dialect.mvn_mean_gradient:
            y = rows - rows.mean(1, keepdim=True)
        else:
            y = _Centred.run(rows)
        return y.view(shape)

    def caffe_gradient(self, b: Backward) -> Gradients:
        shape = b.given[0].shape
        n = shape[0] if self.across_channels else shape[0] * (*shape, 1)[1]
        measured = b.bottoms if self.dialect.mvn_measures_again else b.given
        d, y, x = (t.reshape(n, -1) for t in (b.diffs[0], b.tops[0], measured[0]))
        around = y * (y * d).sum(1, keepdim=True)
        if b.in_place:  # the sum is over the diff that was just written, and added to it
            g = (around + around.sum(1, keepdim=True)) * (-2 / d.shape[1])
        else:
            g = d - (around + d.sum(1, keepdim=True)) / d.shape[1]
        return [(g / (x.var(1, correction=0, keepdim=True).sqrt() + self.eps)).view(shape)], {}


class _AcrossChannels(Function):
    """x / (k + alpha * sum of the squares of ``size`` channels)^beta."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        scale, factor = _denominators(x, size, alpha, beta, k)
        ctx.save_for_backward(x, scale, factor)
        ctx.size, ctx.alpha, ctx.beta, ctx.k = size, alpha, beta, k
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of higher order
            scale = _sum_over_channels(x.square(), ctx.size) * ctx.alpha + ctx.k
            factor = _to_minus(scale, ctx.beta)
        direct = grad * factor
        around = _sum_over_channels((direct * x).div_(scale), ctx.size)
        return torch.addcmul(direct, around, x, value=-2 * ctx.alpha * ctx.beta), None, None, None, None


def _denominators(x: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
    """k + alpha * sum of the squares of ``size`` channels, and that to the power of -beta."""
    scale = _sum_over_channels(x.square(), size).mul_(alpha).add_(k)
    return scale, _to_minus(scale, beta)


def _to_minus(scale: Tensor, beta: float) -> Tensor:
    """scale^-beta. For 3/4, the default, it is computed from square roots."""
    if beta != 0.75:
        return scale.pow(-beta)
    root = scale.rsqrt()
    return root * root.sqrt()


def _sum_over_channels(x: Tensor, size: int) -> Tensor:
    """For each channel the sum of the ``size`` (odd) ones around it; ``x`` itself for a window of one.

    Windows of 1, 2, 4, 8 ... channels are computed from one another, so that any size takes few passes. No slice is
    written in place, which a tracer could not record.
    """
    channels = x.shape[1]
    reach = min(size // 2, channels - 1)
    if not reach:
        return x
    part = F.pad(x, (0, 0, 0, 0, reach, reach))
    total, done, width, size = part[:, :channels], 1, 1, 2 * reach + 1
    while done < size:
        part, width = part[:, :-width] + part[:, width:], 2 * width
        if size & width:
            piece = part[:, done : done + channels]
            total = total + piece if done == 1 else total.add_(piece)
            done += width
    return total


@layer("LRN")
class LRN(elementwise.LRN, Layer):
    """x / (k + alpha / n * sum of squares)^beta over nearby channels, or over a square of pixels (there k is 1).

    In place over channels Caffe overwrites x before it multiplies by it: (k + ...)^(-2 beta).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.across and self.is_in_place:
            return _denominators(x, self.size, self.alpha / self.size, self.beta, self.k)[1].square()
        if self.across:
            return _AcrossChannels.run(x, self.size, self.alpha / self.size, self.beta, self.k)
        mean = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean) ** -self.beta

    def caffe_gradient(self, b: Backward) -> Gradients:
        (d,), (x,), (given,) = b.diffs, b.bottoms, b.given
        if self.across:
            alpha = self.alpha / self.size
            scale, factor = _denominators(given, self.size, alpha, self.beta, self.k)
            direct = factor * (factor if b.in_place else d)
            around = _sum_over_channels((direct if b.in_place else d) * b.tops[0] / scale, self.size)
            return [direct - around * x * (2 * alpha * self.beta)], {}
        squares = given.square().requires_grad_()
        with torch.enable_grad():
            factor = (1 + self.alpha * F.avg_pool2d(squares, self.size, 1, self.size // 2)) ** -self.beta
        (around,) = torch.autograd.grad(factor, squares, x * d)
        return [factor.detach() * d + 2 * x * around], {}
