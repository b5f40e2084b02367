"""Update rules: one class for each solver ``type``; clipping, normalisation and weight decay.

A rule turns gradients into steps: it rewrites ``grads`` to what is subtracted from the parameters, and updates the
histories. Many parameters are done at once (torch's _foreach), in Caffe's order of operations.

Source: sgd_solver.cpp and its siblings under solvers/ (bvlc), solver.cpp (noh).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError
from caffe_port.solver.parts import Part, Registry

__all__ = ["Rates", "Rule", "clip", "pieces", "prepare", "rule"]

Tensors = list[Tensor]

_PIECE = 1 << 18
"""Numbers of a parameter that are updated at a time: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class Rates:
    """The rates of one iteration.

    Attributes:
        local: for each parameter the learning rate times its lr_mult (divided by iter_size where the dialect does so).
        iteration: of the update, from 0.
    """

    local: Sequence[float]
    iteration: int


class Rule(Part):
    """How gradients become steps. A subclass has :meth:`update`.

    Where a gradient and its histories are all 0, the step must be 0 and the histories must stay 0: the solver leaves
    such parameters out.
    """

    histories: ClassVar[int] = 1
    """How many tensors it keeps for each parameter, of the parameter's shape, 0 at first; state files hold them."""
    of_steps: ClassVar[bool] = False
    """Whether these hold steps, to which a rate of 0 adds nothing, not gradients."""

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        """Replace gradients by steps, and histories by the next ones, in place.

        Args:
            grads: of some parameters, or of flat parts of them, with the weight decay added.
            histories: for each history the tensors that belong to ``grads``.
        """
        raise NotImplementedError

    def check_no_momentum(self) -> None:
        """Refuse a ``momentum``."""
        if self.param.momentum:
            raise self.error(f"momentum {self.param.momentum} with type {self.name!r}", expected="no momentum")


rule: Registry[Rule] = Registry("type", Rule)


def clip(solver: Any, grads: Tensors) -> tuple[float, float] | None:
    """Scale all gradients down if their common L2 norm is over ``clip_gradients``; then (norm, factor), else None."""
    if solver.clip_gradients < 0 or not grads:
        return None
    norm = sqrt(sum(float(n) ** 2 for n in torch._foreach_norm(grads)))
    if norm <= solver.clip_gradients:
        return None
    factor = solver.clip_gradients / norm
    torch._foreach_mul_(grads, factor)
    return norm, factor


def pieces(*lists: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensors]]]:
    """Lists of tensors of equal shapes, in chunks that are updated one after the other.

    On the CPU chunks are small; on other devices everything is one chunk.

    Args:
        lists: of equal lengths: parameters, their gradients, their histories ...

    Yields:
        the indices of a chunk in the lists, and for each list the tensors there or flat parts of them.
    """
    places: list[int] = []
    parts: list[Tensors] = [[] for _ in lists]
    size, most = 0, _PIECE if lists[0] and lists[0][0].device.type == "cpu" else inf
    for i, row in enumerate(zip(*lists, strict=True)):
        for part in [row] if row[0].numel() <= most else _split(row):
            if size and size + part[0].numel() > most:
                yield places, parts
                places, parts, size = [], [[] for _ in lists], 0
            places.append(i)
            for some, one in zip(parts, part, strict=True):
                some.append(one)
            size += part[0].numel()
    if places:
        yield places, parts


def _split(row: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Tensors of one shape as flat parts if all are dense with equal strides; else unchanged."""
    first = row[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    if not dense or any(t.stride() != first.stride() for t in row):
        yield row
    else:
        yield from zip(*(t.as_strided((t.numel(),), (1,)).split(_PIECE) for t in row), strict=True)


def prepare(solver: Any, dialect: Dialect, weights: Tensors, grads: Tensors, decay: Sequence[float]) -> None:
    """Normalise by iter_size (unless the dialect leaves that to the rate) and add the weight decay.

    Args:
        decay: for each parameter weight_decay times its decay_mult.
    """
    if solver.iter_size > 1 and not dialect.decay_before_iter_size:
        torch._foreach_mul_(grads, 1.0 / solver.iter_size)
    chosen = [i for i, d in enumerate(decay) if d]
    if not chosen:
        return
    if solver.regularization_type == "L2":
        for i in chosen:
            grads[i].add_(weights[i], alpha=decay[i])
    elif solver.regularization_type == "L1":
        for i in chosen:
            grads[i].add_(torch.sign(weights[i]), alpha=decay[i])
    else:
        raise CaffeError("solver", f"regularization_type {solver.regularization_type!r}", expected="L1 or L2")


def _decaying_squares(squares: Tensors, grads: Tensors, keep: float) -> None:
    torch._foreach_mul_(squares, keep)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - keep)


def _divide(grads: Tensors, squares: Tensors, delta: float, rates: Sequence[float]) -> None:
    for g, h, r in zip(grads, squares, rates, strict=True):
        g.div_(h.sqrt().add_(delta)).mul_(r)


@rule("SGD")
class SGD(Rule):
    """v = momentum v + rate g; the step is v."""

    of_steps = True

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        (velocity,) = histories
        torch._foreach_mul_(grads, list(rates.local))
        torch._foreach_mul_(velocity, self.param.momentum)
        torch._foreach_add_(velocity, grads)
        torch._foreach_copy_(grads, velocity)


@rule("Nesterov")
class Nesterov(Rule):
    """v = momentum v + rate g; the step is (1 + momentum) v, less momentum times the v before."""

    of_steps = True

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        (velocity,), momentum = histories, self.param.momentum
        torch._foreach_mul_(grads, list(rates.local))
        for g, v in zip(grads, velocity, strict=True):
            old = v.clone()
            v.mul_(momentum).add_(g)
            torch.mul(old, -momentum, out=g).add_(v, alpha=1 + momentum)


@rule("AdaGrad")
class AdaGrad(Rule):
    """h += g^2; the step is rate g / (sqrt h + delta)."""

    def check(self) -> None:
        self.check_no_momentum()

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        (squares,) = histories
        torch._foreach_addcmul_(squares, grads, grads)
        _divide(grads, squares, self.param.delta, rates.local)


@rule("RMSProp", dialects=("bvlc",))
class RMSProp(Rule):
    """h = rms_decay h + (1 - rms_decay) g^2; the step is rate g / (sqrt h + delta)."""

    def check(self) -> None:
        self.check_no_momentum()
        if not 0 <= self.param.rms_decay < 1:
            raise self.error(f"rms_decay {self.param.rms_decay}", expected="0 or more and below 1")

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        (squares,) = histories
        _decaying_squares(squares, grads, self.param.rms_decay)
        _divide(grads, squares, self.param.delta, rates.local)


@rule("AdaDelta", dialects=("bvlc",))
class AdaDelta(Rule):
    """The step is rate g sqrt((u + delta) / (h + delta)), with u and h the decaying squares of steps and gradients."""

    histories = 2

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        (squares, steps), momentum, delta = histories, self.param.momentum, self.param.delta
        _decaying_squares(squares, grads, momentum)
        for g, h, u, r in zip(grads, squares, steps, rates.local, strict=True):
            g.mul_((u + delta).div_(h + delta).sqrt_())
            u.mul_(momentum).addcmul_(g, g, value=1 - momentum)
            g.mul_(r)


@rule("Adam", dialects=("bvlc",))
class Adam(Rule):
    """m and v decay towards g and g^2; the step is rate' m / (sqrt v + delta) with the bias taken out of rate'."""

    histories = 2

    def check(self) -> None:
        if not abs(self.param.momentum) < 1:
            raise self.error(f"momentum {self.param.momentum} with type 'Adam'", expected="a magnitude below 1")
        if not abs(self.param.momentum2) <= 1:
            raise self.error(f"momentum2 {self.param.momentum2} with type 'Adam'", expected="a magnitude of at most 1")

    def update(self, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
        first, second = histories
        beta1, beta2, t = self.param.momentum, self.param.momentum2, rates.iteration + 1
        correction = sqrt(1 - beta2**t) / (1 - beta1**t)
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        _decaying_squares(second, grads, beta2)
        torch._foreach_copy_(grads, first)
        _divide(grads, second, self.param.delta, [r * correction for r in rates.local])
