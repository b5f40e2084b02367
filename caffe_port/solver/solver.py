"""The training loop: test, forward and backward ``iter_size`` times, update, snapshot.

Source: solver.cpp, sgd_solver.cpp (bvlc), solver.cpp (noh).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from caffe_port import random
from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError
from caffe_port.pycaffe import Net
from caffe_port.schema import read_solver, to_text
from caffe_port.solver import debug, evaluation, optimizers
from caffe_port.solver.callbacks import Callback, Iteration
from caffe_port.solver.distributed import Group
from caffe_port.solver.log import Log
from caffe_port.solver.nan_check import check_parameters, diverged
from caffe_port.solver.nets import Nets
from caffe_port.solver.precision import Bf16Net
from caffe_port.solver.prefix import alone, check_form, check_prefix
from caffe_port.solver.schedule import policy
from caffe_port.solver.scores import Scores, scores
from caffe_port.solver.smoothed_loss import SmoothedLoss
from caffe_port.solver.snapshot import Snapshots
from caffe_port.solver.state import SolverState

__all__ = ["Solver"]


class Solver:
    """Caffe's solver over our nets.

    Args:
        source: a solver prototxt (file or text) or a SolverParameter.
        path: the file of a SolverParameter, whose folder is also searched for the files that it names.
        dialect: "bvlc", "noh" or None: the training net's.
        proto: another Caffe's caffe.proto, whose fields are then known.
        device: of the nets.
        kind: the type ("SGD" ...), in place of the definition's.
        log: where lines are written; by default a :class:`Log` writing Caffe's lines to stderr.
        keep_going: whether to continue when the loss is not finite, as Caffe does.
        precision: "fp32", or "bf16" for the training net's products.
        channels_last: whether parameters and images have the channels_last memory format.
        group: the processes that train together.
        gradients: "caffe" or "true": what real Caffe computes where layers work in place, or the derivatives.

    Attributes:
        param: the SolverParameter. net: the training net. test_nets: the others.
        state: what training has moved besides the parameters (:class:`caffe_port.solver.state.SolverState`).
        iter: completed iterations.
        callbacks: called with every event (:class:`caffe_port.solver.callbacks.Callback`).
        saved: the last snapshot written or restored and its iteration, else None.

    Raises:
        CaffeError: a definition is wrong, or asks for what the dialect's Caffe refuses.
    """

    writes_resume: ClassVar[bool] = True
    """Whether snapshots have a ``.resume`` file by default."""

    def __init__(
        self,
        source: str | Path | Any,
        *,
        path: str | Path | None = None,
        dialect: str | Dialect | None = None,
        proto: str | Path | None = None,
        device: str | torch.device = "cpu",
        log: Log | None = None,
        kind: str | None = None,
        keep_going: bool = False,
        precision: str = "fp32",
        channels_last: bool = False,
        group: Group | None = None,
        gradients: str = "caffe",
    ) -> None:
        self.param = param = read_solver(source, proto=proto)
        if kind is not None:
            param.type = kind
        is_file = isinstance(source, (str, Path)) and "\n" not in str(source)
        self.path = str(path or (source if is_file else "<solver>"))
        self.log, self.keep_going = log or Log(), keep_going
        self.group = group = group or Group()
        self.log.quiet |= not group.first
        self.callbacks: list[Callback] = []
        self.saved: tuple[int, Path] | None = None
        self._debugs = False
        """Whether the current iteration is logged blob by blob (``debug_info``)."""
        self._whole = True
        """False while parameters are being changed or written."""
        self._all_stop = False
        """Whether all processes stop because of an error in one of them."""
        self.requested: Callable[[], str] = lambda: "none"
        """Asked after every iteration and test pass: "snapshot", "stop" or "none"."""
        self.stopped = False
        if param.average_loss < 1:
            raise CaffeError(self.path, f"average_loss {param.average_loss}", expected="1 or more")
        if param.iter_size < 1:
            raise CaffeError(self.path, f"iter_size {param.iter_size}", expected="1 or more")
        self.log.line(f"Initializing solver from parameters: \n{to_text(param)}".rstrip())
        check_prefix(param, self.path)
        self._evaluation = evaluation.kind_of(param, self.path)
        if param.random_seed >= 0:
            random.set_random_seed(param.random_seed + group.rank)
        self._nets = Nets(param, self.path, dialect, proto)
        source_text, definition = self._nets.train()
        self.log.line(f"Creating training net {source_text}")
        self.dialect = definition.dialect
        parts = policy.make(param, self.dialect, self.path), optimizers.rule.make(param, self.dialect, self.path)
        made = {"fp32": Net, "bf16": Bf16Net}[precision]
        self.net = made(definition, phase="TRAIN", gradients=gradients).to(device)
        check_form(param, self.net, self.path)
        self._log_gradients()
        if channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.test_nets: list[Net] = []
        for i, (source_text, definition) in enumerate(self._nets.tests()):
            self.log.line(f"Creating test net (#{i}) {source_text}")
            self.test_nets.append(Net(definition, phase="TEST").to(device))
        for weights in param.weights:
            self.load(weights.split(","))
        self.log.line("Solver scaffolding done.")
        self.state = SolverState((self.net, *self.test_nets), *parts, SmoothedLoss(param.average_loss))
        self._snapshots = Snapshots(param, self.path, self.net, group, self.log)
        self._idle: set[int] = set()
        """Parameters without a gradient whose updates change nothing."""
        self._timed = (time.monotonic(), 0)

    @property
    def iter(self) -> int:
        """Completed iterations."""
        return self.state.iter

    def _follow_net(self) -> None:
        """Learn what the net's parameters are now: ``net.ip2 = torch.nn.Linear(...)`` brings others."""
        if self.state.follow_net():
            self._idle.clear()
            check_form(self.param, self.net, self.path)

    def load(self, files: Iterable[str | Path]) -> None:
        """Load weights into the training net and, as Caffe does, into the test nets."""
        for file in files:
            path = self._nets.find(str(file).strip())
            for net in (self.net, *self.test_nets):
                self.log.line(f"Finetuning from {path}")
                net.load(path)

    def _log_gradients(self) -> None:
        """Name the layers whose gradient in Caffe is not their derivative, and which of the two they get."""
        pairs = self.net.caffe_gradients.pairs(self.net.needs)
        if pairs:
            kind = "as Caffe computes them" if self.net.gradients == "caffe" else "true derivatives, unlike Caffe's"
            shown = "; ".join(pairs[:5]) + (f"; {len(pairs) - 5} more" if len(pairs) > 5 else "")
            self.log.line(f"Gradients of layers whose blobs are overwritten in place are {kind}: {shown}")

    # -- training ------------------------------------------------------------------------------------------------------

    @alone
    def solve(self) -> None:
        """Train to ``max_iter``, with Caffe's last snapshot, last loss and last test."""
        param = self.param
        self.stopped = False
        self.log.line(f"Solving {self.net.definition.net.name}")
        self.log.line(f"Learning Rate Policy: {param.lr_policy}")
        try:
            self._call("on_begin")
            self._run()
        except BaseException:
            with suppress(Exception):  # the first error is the one that is raised
                self._call("on_end")
            raise
        self._call("on_end")

    def _run(self) -> None:
        param = self.param
        self.step(param.max_iter - self.iter)
        if (param.snapshot_after_train or self.stopped) and (not param.snapshot or self.iter % param.snapshot):
            self.snapshot(off_interval=not self.stopped)
        if self.stopped:
            self.log.line("Optimization stopped early.")
            return
        if not self.group.first:
            return
        self.state.mark()
        if param.display and self.iter % param.display == 0:
            with torch.no_grad():
                loss, _ = self.net.losses()
            shown = self.state.smoothed_loss.add(float(loss)) if self.dialect.smooths_last_loss else float(loss)
            self.log.loss(self.iter, shown)
        if param.test_interval and self.iter % param.test_interval == 0:
            self.test_all()
        self.log.line("Optimization Done.")

    @alone
    def step(self, iterations: int) -> None:
        """Train for so many iterations more."""
        param, start, self.stopped = self.param, self.iter, False
        self._follow_net()
        check_form(self.param, self.net, self.path)
        self.state.smoothed_loss.start()
        self.group.broadcast(p.parameter for p in self.state.learnable)
        self._timed = (time.monotonic(), self.iter)
        while self.iter < start + iterations and not self.stopped:
            self.state.mark()
            due = param.test_interval and self.iter % param.test_interval == 0
            if due and (self.iter or param.test_initialization):
                if self.group.first:
                    self.test_all()
                if self.stopped:
                    self.state.undo()
                    return
            self._iterate()
            request = self.group.agree(self.requested())
            if request == "snapshot" or (param.snapshot and self.iter % param.snapshot == 0):
                self.snapshot()
            self.stopped = request == "stop"

    def _iterate(self) -> None:
        param = self.param
        display = bool(param.display) and self.iter % param.display == 0
        self._debugs = display and param.debug_info
        self._call("on_start")
        self._follow_net()
        self._clear_diffs()
        loss, outputs = self._passes()
        if not self.keep_going and self.group.any(not isfinite(loss)):
            self._all_stop = True
            raise diverged(self.net, self.state, self.param.iter_size, loss)
        shown, printed = self.state.smoothed_loss.add(loss), scores(self.net, outputs) if display else []
        if display:
            self.log.loss(self.iter, shown, speed=self._speed() if self.dialect.logs_speed else None)
            self.log.scores("Train", printed)
        self.group.average([p.parameter.grad for p in self.state.learnable if p.parameter.grad is not None])
        self._call("on_gradients_ready")
        self._whole, self.state.position = False, None
        rate = self.apply_update(display)
        self._whole = True
        self._call("on_iteration", Iteration(self.iter - 1, shown, rate, printed))

    def _passes(self) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward ``iter_size`` times: the mean loss, and the outputs of the last pass."""
        total = np.float32(0)
        for _ in range(self.param.iter_size):
            loss, outputs = self._train_pass()
            total += np.float32(loss)
        return float(total / np.float32(self.param.iter_size)), outputs

    def _clear_diffs(self) -> None:
        """Start without gradients: the memory of the last ones is free for the forward pass."""
        self.net.zero_grad(set_to_none=True)
        for _, layer in self.net.nodes:
            for name in layer.aliases:  # a parameter seen in two shapes has one gradient
                layer.diff(name)

    def _call(self, event: str, *facts: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *facts)

    def _train_pass(self) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward over one batch: the loss, the outputs."""
        if self._debugs:
            return debug.run(self.net, self.log, learns=True)
        loss, outputs = self.net.losses()
        loss.backward()
        return loss.item(), outputs

    def _speed(self) -> tuple[float, float, int]:
        """Iterations a second and seconds since this was last asked."""
        now = time.monotonic()
        seconds, done = now - self._timed[0], self.iter - self._timed[1]
        self._timed = now, self.iter
        return done / (seconds or 1.0), seconds, self.param.display

    @torch.no_grad()
    def apply_update(self, display: bool = False) -> float:
        """One update from the gradients that the parameters hold; counts the iteration. The learning rate it had."""
        self._follow_net()
        param, state = self.param, self.state
        rate = self._learning_rate()
        if display:
            self.log.rate(self.iter, rate)
        decays = [param.weight_decay * p.decay_mult for p in self.state.learnable]
        moving = [i for i, decay in enumerate(decays) if self._moves(i, decay)]
        weights = [self.state.learnable[i].parameter for i in moving]
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        clipped = optimizers.clip(param, grads)
        if clipped:
            self.log.clipped(*clipped, param.clip_gradients)
        late = self.dialect.decay_before_iter_size and param.type == "SGD"
        local = [rate * self.state.learnable[i].lr_mult / (param.iter_size if late else 1) for i in moving]
        logged = self._debugs and self.dialect.debug_logs_updates
        kept = [[h[i] for i in moving] for h in state.history]
        for places, (some, steps, *histories) in optimizers.pieces(weights, grads, *kept):
            optimizers.prepare(param, self.dialect, some, steps, [decays[moving[i]] for i in places])
            state.rule.update(steps, histories, optimizers.Rates([local[i] for i in places], state.iter))
            if not logged:
                torch._foreach_sub_(some, steps)
        if logged:
            debug.log_updates(self.net, {id(w): g for w, g in zip(weights, grads, strict=True)}, self.log)
            torch._foreach_sub_(weights, grads)
        state.iter += 1
        return rate

    def _learning_rate(self) -> float:
        """The rate of the iteration under way; moves the policy's state on, alike in all processes."""
        state, loss = self.state, torch.tensor(self.state.smoothed_loss.value, device=self.group.device)
        self.group.broadcast([loss])
        for line in state.policy.advance(state.iter, loss.item()):
            self.log.line(line, "sgd_solver.cpp")
        return state.policy.learning_rate(state.iter)

    def _moves(self, i: int, decay: float) -> bool:
        """Whether an update changes parameter ``i`` or its history.

        Caffe updates all. One without a gradient can still decay (into a history of gradients even if its rate is 0),
        or continue to move by its momentum.
        """
        one = self.state.learnable[i]
        if one.parameter.grad is not None:
            return True
        if i not in self._idle:
            decays = bool(decay) and bool(one.lr_mult or not self.state.rule.of_steps)
            if decays or any(h[i].any() for h in self.state.history):
                return True
            self._idle.add(i)
        return False

    # -- testing -------------------------------------------------------------------------------------------------------

    def test_all(self) -> None:
        """Score every test net with the training net's parameters."""
        for i in range(len(self.test_nets)):
            if not self.stopped:
                self.test(i)

    def test(self, i: int) -> list[Scores]:
        """Score test net ``i`` over its ``test_iter`` batches: the means of its outputs, or (``eval_type: detection``)
        the precision of what it detects."""
        self.log.line(f"Iteration {self.iter}, Testing net (#{i})")
        net, param = self.test_nets[i], self.param
        net.share_parameters(self.net)
        evaluated = self._evaluation(param, self.log)
        loss = np.float32(0)
        for _ in range(param.test_iter[i]):
            if self._asked_to_stop():
                self.log.line("Test interrupted.")
                return []
            batch_loss, outputs = self._test_pass(net)
            loss += np.float32(batch_loss)
            evaluated.add(scores(net, outputs), outputs)
        if param.test_compute_loss:
            self.log.line(f"Test loss: {self.log.number(float(loss / np.float32(param.test_iter[i])))}")
        found = evaluated.finish()
        self._call("on_test", i, found)
        return found

    @torch.no_grad()
    def _test_pass(self, net: Net) -> tuple[float, dict[str, Tensor]]:
        """Forward over one batch: the loss, the outputs."""
        if self.param.debug_info and not self.dialect.debug_logs_updates:
            return debug.run(net, self.log, learns=False)
        loss, outputs = net.losses()
        return loss.item(), outputs

    def _asked_to_stop(self) -> bool:
        if self.group.count > 1:
            return False  # the other processes learn of a request only after an iteration
        while (request := self.requested()) != "none":
            if request == "snapshot":
                self.snapshot()
            else:
                self.stopped = True
                break
        return self.stopped

    # -- snapshots -----------------------------------------------------------------------------------------------------

    @alone
    def snapshot(self, *, off_interval: bool = False, resume: bool | None = None) -> Path:
        """Write weights and state under Caffe's names; the state's path.

        Args:
            off_interval: whether it is a last snapshot, which some dialects number one higher.
            resume: whether to write the ``.resume`` file for an exact resume; :attr:`writes_resume` if not given.

        Raises:
            DivergedError: a parameter is not finite, and ``keep_going`` is not set. FileError: it cannot be written.
        """
        self._follow_net()
        if not self.keep_going:
            check_parameters(self.net, self.iter)
        adds_one = off_interval and self.dialect.snapshot_off_interval_adds_one
        self._whole = False
        resume = self.writes_resume if resume is None else resume
        state = self._snapshots.write(self.state, self.iter + adds_one, resume=resume)
        self._whole, self.saved = True, (self.iter, state)
        self._call("on_snapshot", state)
        return state

    def restore(self, path: str | Path) -> None:
        """Continue from a .solverstate or .solverstate.h5, ours or real Caffe's."""
        self._follow_net()
        self._snapshots.read(path, self.state)
        self._idle.clear()
        self.saved = self.iter, Path(path)

    def rescue(self) -> Path | None:
        """After an error: a snapshot of the last completed iteration, or the one that holds it already.

        None if there is nothing to save yet, or the error came while parameters were changing or being written. Several
        processes save nothing unless all stop together: the others may not have failed.
        """
        can = self._whole and self.iter and (self.group.count == 1 or self._all_stop)
        if not can or (self.saved and self.saved[0] == self.iter):
            return self.saved[1] if self.saved else None
        self.state.undo()
        return self.snapshot()

    @property
    def images(self) -> int:
        """How many items an iteration takes, in all processes; 0 if the training net has no data layer."""
        shapes = (self.net.shapes[n.tops[0]] for n, _ in self.net.nodes if n.tops and not n.bottoms)
        return next((int(s[0]) for s in shapes if s), 0) * self.param.iter_size * self.group.count
