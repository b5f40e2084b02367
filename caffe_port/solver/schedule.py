"""Learning-rate policies: one class for each ``lr_policy``.

Arithmetic is Caffe's: powers of a float with a whole exponent are taken in double precision, all else in single.

Source: sgd_solver.cpp (bvlc; plateau: the ssd branch of weiliu89/caffe), solver.cpp (noh), GetLearningRate.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from caffe_port.solver.parts import Part, Registry

__all__ = ["Policy", "policy"]

_f = np.float32


class Policy(Part):
    """How the learning rate depends on the iteration.

    A subclass has :meth:`rate`, and :meth:`advance` if it has a state. ``current_step``, ``minimum_loss`` and
    ``iter_last_event`` in its state are fields of Caffe's own state files; all else is kept in the ``.resume`` file.
    """

    initial: ClassVar[dict[str, Any]] = {"current_step": 0}

    def advance(self, iteration: int, loss: float) -> Iterable[str]:
        """Move the state on, once in each iteration and before :meth:`rate`.

        Args:
            iteration: from 0. loss: of this iteration, averaged over ``average_loss`` iterations as in the log.

        Returns:
            lines for the log.
        """
        return ()

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, before any ``lr_mult``."""
        raise NotImplementedError

    def learning_rate(self, iteration: int) -> float:
        """:meth:`rate` in single precision; as in C++ what is too large is inf, what is undefined is nan."""
        with np.errstate(all="ignore"):
            return float(_f(self.rate(iteration)))

    def next_rate(self, iteration: int, loss: float) -> float:
        """The learning rate that ``iteration`` would have; the state stays as it is."""
        after = copy.copy(self)
        after.state = copy.deepcopy(self.state)
        list(after.advance(iteration, loss))  # it may be a generator
        return after.learning_rate(iteration)

    def check_gamma(self) -> None:
        """Refuse a negative ``gamma``, where the dialect's Caffe does."""
        if self.dialect.checks_rate_fields and self.param.gamma < 0:
            raise self.error(f"gamma {self.param.gamma} with lr_policy {self.name!r}", expected="a gamma of 0 or more")

    def check_stepsize(self, *, always: bool = False) -> None:
        """Refuse a ``stepsize`` of 0 or less, where the dialect's Caffe does or ``always``."""
        if (always or self.dialect.checks_rate_fields) and self.param.stepsize <= 0:
            found = f"stepsize {self.param.stepsize} with lr_policy {self.name!r}"
            raise self.error(found, expected="a stepsize above 0")

    def scaled(self, exponent: int) -> float:
        """base_lr gamma^exponent."""
        return float(_f(self.param.base_lr)) * np.power(np.float64(_f(self.param.gamma)), exponent)


policy: Registry[Policy] = Registry("lr_policy", Policy)


@policy("fixed")
class Fixed(Policy):
    """base_lr."""

    def rate(self, iteration: int) -> float:
        return self.param.base_lr


@policy("step")
class Step(Policy):
    """base_lr gamma^floor(iteration / stepsize)."""

    def check(self) -> None:
        self.check_stepsize(always=True)
        self.check_gamma()

    def advance(self, iteration: int, loss: float) -> Iterable[str]:
        self.state["current_step"] = iteration // self.param.stepsize
        return ()

    def rate(self, iteration: int) -> float:
        return self.scaled(self.state["current_step"])


@policy("exp")
class Exp(Policy):
    """base_lr gamma^iteration."""

    def check(self) -> None:
        self.check_gamma()

    def rate(self, iteration: int) -> float:
        return self.scaled(iteration)


@policy("inv")
class Inv(Policy):
    """base_lr (1 + gamma iteration)^-power."""

    def check(self) -> None:
        self.check_gamma()

    def rate(self, iteration: int) -> float:
        p = self.param
        return _f(p.base_lr) * (_f(1) + _f(p.gamma) * _f(iteration)) ** -_f(p.power)


@policy("multistep")
class MultiStep(Policy):
    """base_lr gamma^n after n of the iterations ``stepvalue``; n grows by one at most in an iteration."""

    def check(self) -> None:
        self.check_gamma()

    def advance(self, iteration: int, loss: float) -> Iterable[str]:
        step, values = self.state["current_step"], self.param.stepvalue
        if step >= len(values) or iteration < values[step]:
            return ()
        self.state["current_step"] = step + 1
        return (f"MultiStep Status: Iteration {iteration}, step = {step + 1}",)

    def rate(self, iteration: int) -> float:
        return self.scaled(self.state["current_step"])


@policy("poly")
class Poly(Policy):
    """base_lr (1 - iteration / max_iter)^power."""

    def rate(self, iteration: int) -> float:
        p = self.param
        return _f(p.base_lr) * (_f(1) - _f(iteration) / _f(p.max_iter)) ** _f(p.power)


@policy("sigmoid")
class Sigmoid(Policy):
    """base_lr / (1 + exp(-gamma (iteration - stepsize)))."""

    def check(self) -> None:
        self.check_stepsize()
        self.check_gamma()

    def rate(self, iteration: int) -> float:
        p = self.param
        return _f(p.base_lr) * (_f(1) / (_f(1) + np.exp(-_f(p.gamma) * (_f(iteration) - _f(p.stepsize)))))


@policy("plateau")
class Plateau(Policy):
    """base_lr gamma^n, where n grows when ``plateau_winsize[n]`` iterations have passed since the last new minimum of
    the averaged loss or the last growth of n. Of SSD's Caffe."""

    initial: ClassVar[dict[str, Any]] = {
        "current_step": 0,
        "minimum_loss": float(np.finfo(_f).max),
        "iter_last_event": 0,
    }

    def advance(self, iteration: int, loss: float) -> Iterable[str]:
        state, p, lines = self.state, self.param, []
        if loss < state["minimum_loss"]:
            state.update(minimum_loss=loss, iter_last_event=iteration)
        step = state["current_step"]
        if step < len(p.plateau_winsize) and iteration >= state["iter_last_event"] + p.plateau_winsize[step]:
            state.update(current_step=step + 1, iter_last_event=iteration)
            lines.append(f"Plateau Status: Iteration {iteration}, step = {step + 1}")
        if p.display and iteration % p.display == 0 and state["iter_last_event"] > iteration - p.display:
            lines.append(f"Plateau Status: Iteration {iteration}, current minimum_loss = {state['minimum_loss']:g}")
        return lines

    def rate(self, iteration: int) -> float:
        return self.scaled(self.state["current_step"])
