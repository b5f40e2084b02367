"""pycaffe's solver classes.

They train as :class:`caffe_port.solver.Solver` does, but on the nets' blobs, so that ``solver.net.blobs`` holds data
and diffs of the last iteration; that takes more memory and time. A loss that is not finite does not stop them, unless
they are made with ``keep_going=False``. Their snapshots are the two files that real Caffe writes;
``snapshot(resume=True)`` adds the ``.resume`` file of an exact resume.

Source: python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_port.errors import CaffeError, nearest
from caffe_port.pycaffe import Net, mode
from caffe_port.schema import read_solver
from caffe_port.solver import optimizers
from caffe_port.solver.callbacks import Callback
from caffe_port.solver.solver import Solver

__all__ = [
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "NesterovSolver",
    "RMSPropSolver",
    "SGDSolver",
    "get_solver",
]


class SGDSolver(Solver):
    """A solver of this class's type, whatever ``type`` the prototxt names.

    Args:
        solver_file: a solver prototxt (file or text) or a SolverParameter.

    Attributes:
        net, test_nets, iter, param: see :class:`caffe_port.solver.Solver`. lr: the rate of the next iteration.
    """

    kind: ClassVar[str] = "SGD"
    writes_resume = False

    def __init__(self, solver_file: str | Path | Any, **options: Any) -> None:
        options.setdefault("device", mode.device())
        options.setdefault("keep_going", True)
        super().__init__(solver_file, kind=self.kind, **options)

    @property
    def lr(self) -> float:
        return self.state.policy.next_rate(self.iter, self.state.smoothed_loss.value)

    def solve(self, resume_file: str | Path | None = None) -> None:
        """Train to ``max_iter``, from a snapshot's state if one is given."""
        if resume_file is not None:
            self.restore(resume_file)
        super().solve()

    def add_callback(self, on_start: Callable[[], object], on_gradients_ready: Callable[[], object]) -> None:
        """Call these in every iteration: before it, and between its last backward pass and the update."""
        self.callbacks.append(_Callback(on_start, on_gradients_ready))

    def share_weights(self, net: Net) -> None:
        """Let ``net`` use the training net's parameters."""
        net.share_with(self.net)

    def apply_update(self, display: bool = False) -> float:
        """One update from the diffs that the parameters hold; counts the iteration. The learning rate it had."""
        self.net.sync()
        return super().apply_update(display)

    def _clear_diffs(self) -> None:
        self.net.clear_param_diffs()  # in place: a caller may hold an array over them

    def _train_pass(self) -> tuple[float, dict[str, Tensor]]:
        loss = self._test_pass(self.net)
        self.net.backward()
        return loss

    def _test_pass(self, net: Net) -> tuple[float, dict[str, Tensor]]:
        loss = net._forward(0, len(net.layers) - 1)
        return loss, {name: torch.from_numpy(net.blobs[name].data.copy()) for name in net.outputs}


@dataclass
class _Callback(Callback):
    """A pair of functions without arguments."""

    start: Callable[[], object]
    gradients_ready: Callable[[], object]

    def on_start(self, solver: Solver) -> None:
        self.start()

    def on_gradients_ready(self, solver: Solver) -> None:
        self.gradients_ready()


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    kind = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    kind = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    kind = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    kind = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    kind = "Adam"


_CLASSES = (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)


def get_solver(solver_file: str | Path | Any, **options: Any) -> SGDSolver:
    """A solver of the type that its prototxt names.

    Raises:
        CaffeError: there is no such type, or the definition is wrong.
    """
    kind = read_solver(solver_file).type
    classes = {cls.kind: cls for cls in _CLASSES}
    known = {*classes, *optimizers.rule.classes}
    if kind not in known:
        near = nearest(kind, known)
        raise CaffeError(
            "get_solver", f"type {kind!r}", expected=", ".join(known), remedy=f"near: {near}" if near else ""
        )
    cls = classes.get(kind) or type(f"{kind}Solver", (SGDSolver,), {"kind": kind})  # a plugin's rule
    return cls(solver_file, **options)
