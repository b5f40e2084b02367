"""The learning rate at an iteration, as pure functions of the solver's parameters.

Arithmetic is Caffe's: powers of a float with a whole exponent are taken in double precision, all else in single.

Source: sgd_solver.cpp (bvlc), solver.cpp (noh), GetLearningRate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, nearest

__all__ = ["POLICIES", "rate", "steps_done"]

POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")

_f = np.float32


def steps_done(solver: Any, iteration: int, before: int) -> int:
    """Caffe's ``current_step``: how many drops of the rate have happened.

    multistep moves on by one step at most in an iteration, so that the state before matters after a resume.

    Args:
        before: the value at the iteration before (from a snapshot after a resume, 0 at first).
    """
    if solver.lr_policy == "step":
        return iteration // solver.stepsize
    if solver.lr_policy == "multistep":
        return before + (before < len(solver.stepvalue) and iteration >= solver.stepvalue[before])
    return before


def rate(solver: Any, iteration: int, steps: int) -> float:
    """The learning rate.

    Args:
        solver: a SolverParameter.
        steps: :func:`steps_done` at this iteration.

    Raises:
        CaffeError: an unknown policy.
    """
    base, gamma, power = _f(solver.base_lr), _f(solver.gamma), _f(solver.power)
    policy = solver.lr_policy
    if policy == "fixed":
        value = base
    elif policy in ("step", "multistep"):
        value = float(base) * float(gamma) ** steps
    elif policy == "exp":
        value = float(base) * float(gamma) ** iteration
    elif policy == "inv":
        value = base * (_f(1) + gamma * _f(iteration)) ** -power
    elif policy == "poly":
        value = base * (_f(1) - _f(iteration) / _f(solver.max_iter)) ** power
    elif policy == "sigmoid":
        value = base * (_f(1) / (_f(1) + np.exp(-gamma * (_f(iteration) - _f(solver.stepsize)))))
    else:
        raise _unknown(policy)
    return float(_f(value))


def check(solver: Any, where: str) -> None:
    """Refuse what the policy cannot work with.

    Raises:
        CaffeError: an unknown policy, a step of 0, a negative gamma.
    """
    policy = solver.lr_policy
    if policy not in POLICIES:
        raise _unknown(policy, where)
    if policy in ("step", "sigmoid") and solver.stepsize <= 0:
        raise CaffeError(where, f"stepsize {solver.stepsize} with lr_policy {policy!r}", expected="a stepsize above 0")
    if policy in ("step", "exp", "inv", "multistep", "sigmoid") and solver.gamma < 0:
        raise CaffeError(where, f"gamma {solver.gamma} with lr_policy {policy!r}", expected="a gamma of 0 or more")


def _unknown(policy: str, where: str = "solver") -> CaffeError:
    near = nearest(policy, POLICIES)
    remedy = f"did you mean {near}?" if near else ""
    return CaffeError(where, f"lr_policy {policy!r}", expected=", ".join(POLICIES), remedy=remedy)
