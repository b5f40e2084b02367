"""What an iteration does to the parameters, as functions over lists of tensors.

Every rule turns gradients into steps: it rewrites ``grads`` to what is subtracted from the parameters, and moves the
history on. Many parameters are done at once (torch's _foreach), in Caffe's order of operations.

Source: sgd_solver.cpp and its siblings under solvers/ (bvlc), solver.cpp (noh).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, nearest

__all__ = ["RULES", "Rates", "Rule", "clip", "pieces", "prepare", "rule_of"]

Tensors = list[Tensor]

_PIECE = 1 << 18
"""Numbers of a parameter that are updated at a time: few enough that they stay in the cache from pass to pass."""


@dataclass(frozen=True)
class Rates:
    """What one iteration needs beside tensors.

    Attributes:
        local: for each parameter the learning rate times its lr_mult (divided by iter_size where the dialect does so).
        iteration: of the update, from 0.
    """

    local: Sequence[float]
    iteration: int


@dataclass(frozen=True)
class Rule:
    """A solver type.

    Attributes:
        update: what it does. histories: how many it keeps for each parameter.
        of_steps: whether these hold steps, to which a rate of 0 adds nothing, not gradients.
    """

    update: Callable[[Any, Tensors, list[Tensors], Rates], None]
    histories: int
    of_steps: bool = False
    dialects: tuple[str, ...] = ("bvlc", "noh")


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
    """Lists of tensors that belong together number by number, in pieces to be updated one after the other.

    On the CPU these are small; elsewhere all is one piece.

    Args:
        lists: of equal lengths: parameters, their gradients, their histories ...

    Yields:
        which places of the lists a piece is of, and for each list the tensors there or flat parts of them.
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
    """Tensors of one shape as flat parts, if their numbers lie one after the other in all; else as they are."""
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


def _sgd(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """v = momentum v + rate g; the step is v."""
    (velocity,) = histories
    torch._foreach_mul_(grads, list(rates.local))
    torch._foreach_mul_(velocity, solver.momentum)
    torch._foreach_add_(velocity, grads)
    torch._foreach_copy_(grads, velocity)


def _nesterov(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """v = momentum v + rate g; the step goes back the old v and over the new one."""
    (velocity,) = histories
    torch._foreach_mul_(grads, list(rates.local))
    for g, v in zip(grads, velocity, strict=True):
        old = v.clone()
        v.mul_(solver.momentum).add_(g)
        torch.mul(old, -solver.momentum, out=g).add_(v, alpha=1 + solver.momentum)


def _adagrad(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """h += g^2; the step is rate g / (sqrt h + delta)."""
    (squares,) = histories
    torch._foreach_addcmul_(squares, grads, grads)
    _divide(grads, squares, solver.delta, rates.local)


def _rmsprop(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """h = rms_decay h + (1 - rms_decay) g^2; the step is rate g / (sqrt h + delta)."""
    (squares,) = histories
    _decaying_squares(squares, grads, solver.rms_decay)
    _divide(grads, squares, solver.delta, rates.local)


def _adadelta(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """The step is rate g sqrt((u + delta) / (h + delta)), with u and h the decaying squares of steps and gradients."""
    squares, steps = histories
    _decaying_squares(squares, grads, solver.momentum)
    for g, h, u, r in zip(grads, squares, steps, rates.local, strict=True):
        g.mul_((u + solver.delta).div_(h + solver.delta).sqrt_())
        u.mul_(solver.momentum).addcmul_(g, g, value=1 - solver.momentum)
        g.mul_(r)


def _adam(solver: Any, grads: Tensors, histories: list[Tensors], rates: Rates) -> None:
    """m and v decay towards g and g^2; the step is rate' m / (sqrt v + delta) with the bias taken out of rate'."""
    first, second = histories
    beta1, beta2, t = solver.momentum, solver.momentum2, rates.iteration + 1
    correction = sqrt(1 - beta2**t) / (1 - beta1**t)
    torch._foreach_mul_(first, beta1)
    torch._foreach_add_(first, grads, alpha=1 - beta1)
    _decaying_squares(second, grads, beta2)
    torch._foreach_copy_(grads, first)
    _divide(grads, second, solver.delta, [r * correction for r in rates.local])


def _decaying_squares(squares: Tensors, grads: Tensors, keep: float) -> None:
    torch._foreach_mul_(squares, keep)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - keep)


def _divide(grads: Tensors, squares: Tensors, delta: float, rates: Sequence[float]) -> None:
    for g, h, r in zip(grads, squares, rates, strict=True):
        g.div_(h.sqrt().add_(delta)).mul_(r)


RULES = {
    "SGD": Rule(_sgd, 1, of_steps=True),
    "Nesterov": Rule(_nesterov, 1, of_steps=True),
    "AdaGrad": Rule(_adagrad, 1),
    "RMSProp": Rule(_rmsprop, 1, dialects=("bvlc",)),
    "AdaDelta": Rule(_adadelta, 2, dialects=("bvlc",)),
    "Adam": Rule(_adam, 2, dialects=("bvlc",)),
}


def rule_of(solver: Any, dialect: Dialect, where: str) -> Rule:
    """The rule of the solver's ``type``.

    Raises:
        CaffeError: an unknown type, one that the dialect does not have, or settings that its Caffe refuses.
    """
    name = solver.type
    if name not in RULES:
        near = nearest(name, RULES)
        raise CaffeError(where, f"type {name!r}", expected=", ".join(RULES), remedy=f"near: {near}" if near else "")
    rule = RULES[name]
    if dialect.name not in rule.dialects:
        raise CaffeError(where, f"type {name!r}, which {dialect.name} does not have", remedy="--dialect bvlc")
    if name in ("AdaGrad", "RMSProp") and solver.momentum:
        raise CaffeError(where, f"momentum {solver.momentum} with type {name!r}", expected="no momentum")
    if name == "RMSProp" and not 0 <= solver.rms_decay < 1:
        raise CaffeError(where, f"rms_decay {solver.rms_decay}", expected="0 or more and below 1")
    return rule
