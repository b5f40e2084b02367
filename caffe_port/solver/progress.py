"""A progress bar below the log, on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from caffe_port.console import number
from caffe_port.solver.callbacks import Callback, Iteration
from caffe_port.solver.solver import Solver

__all__ = ["Bar"]


class Bar(Callback):
    """Shows iterations, loss, rate, images per second and the time left; log lines are printed above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._write: Any = None
        self._images = 0

    def on_begin(self, solver: Solver) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=solver.param.max_iter, initial=solver.iter, unit="it", file=sys.stderr, dynamic_ncols=True
        )
        self._write, solver.log.write = solver.log.write, lambda line: tqdm.write(line, file=sys.stderr)
        self._images = solver.images

    def on_iteration(self, solver: Solver, iteration: Iteration) -> None:
        facts = self._bar.format_dict
        done, elapsed = self._bar.n + 1 - self._bar.initial, facts["elapsed"]
        speed = (facts["rate"] or done / (elapsed or 1.0)) * self._images  # tqdm's rate is None until it has drawn
        images = f", {speed:.{0 if speed >= 10 else 2}f} images/s" if speed else ""
        text = f"loss {number(iteration.loss, '.4g')}, rate {iteration.rate:.3g}{images}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def on_end(self, solver: Solver) -> None:
        solver.log.write = self._write
        self._bar.close()
