"""The loop: test, forward and backward ``iter_size`` times, update, snapshot.

Source: solver.cpp, sgd_solver.cpp (bvlc), solver.cpp (noh).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import random
from caffe_port.dialect import Dialect
from caffe_port.errors import CaffeError, FileError
from caffe_port.pycaffe import Net
from caffe_port.schema import Definition, read_net, read_solver
from caffe_port.schema.messages import TEST, TRAIN
from caffe_port.solver import schedule, snapshot, update
from caffe_port.solver.average import Average
from caffe_port.solver.log import Log

__all__ = ["Learned", "Solver"]


@dataclass
class Learned:
    """A parameter that the solver updates (or, with lr_mult 0, leaves as it is), with its multipliers."""

    name: str
    parameter: Tensor
    lr_mult: float
    decay_mult: float


@dataclass
class Scores:
    """One score of a net's outputs: the output's name, its loss weight, the number."""

    name: str
    weight: float
    value: float


class Solver:
    """Caffe's solver over our nets.

    Args:
        source: a solver prototxt (file or text) or a SolverParameter.
        dialect: "bvlc", "noh" or None: the training net's.
        device: where the nets live.
        kind: the rule ("SGD" ...) in place of the one that the definition names.
        log: where lines go; a :class:`Log` writing Caffe's lines to stderr by default.

    Attributes:
        param: the SolverParameter. net: the training net. test_nets: the others.
        iter: completed iterations. current_step: drops of the rate so far.
        history: for each history of the rule a list of tensors, one for each learned parameter.

    Raises:
        CaffeError: a definition is wrong, or asks for what the dialect's Caffe refuses.
    """

    def __init__(
        self,
        source: str | Path | Any,
        *,
        dialect: str | Dialect | None = None,
        device: str | torch.device = "cpu",
        log: Log | None = None,
        kind: str | None = None,
    ) -> None:
        self.param = param = read_solver(source)
        if kind is not None:
            param.type = kind
        self.path = str(source) if isinstance(source, (str, Path)) and "\n" not in str(source) else "<solver>"
        self.log = log or Log()
        self.iter = self.current_step = 0
        self.requested: Callable[[], str] = lambda: "none"
        """Asked after every iteration and test pass: "snapshot", "stop" or "none"."""
        self.callbacks: list[tuple[Callable[[], object], Callable[[], object]]] = []
        """What to call in every iteration: before it, and between its last backward pass and the update."""
        self.stopped = False
        if param.average_loss < 1:
            raise CaffeError(self.path, f"average_loss {param.average_loss}", expected="1 or more")
        if param.iter_size < 1:
            raise CaffeError(self.path, f"iter_size {param.iter_size}", expected="1 or more")
        schedule.check(param, self.path)
        if param.snapshot:
            self._check_prefix()
        if param.random_seed >= 0:
            random.set_random_seed(param.random_seed)
        definition = self._train_definition(dialect)
        self.dialect = definition.dialect
        self.rule = update.rule_of(param, self.dialect, self.path)
        self.net = Net(definition, phase="TRAIN").to(device)
        self.test_nets = [Net(d, phase="TEST").to(device) for d in self._test_definitions(dialect)]
        for weights in param.weights:
            self.load(weights.split(","))
        self.learned = list(_learned(self.net))
        self.history = [[torch.zeros_like(p.parameter) for p in self.learned] for _ in range(self.rule.histories)]
        self._idle: set[int] = set()
        """Parameters without a gradient whose updates are found to do nothing."""
        self.average = Average(param.average_loss)
        self.boundary: dict[str, Any] | None = None
        """During a test: what :func:`snapshot.position` said before it, from where a snapshot would go on."""
        self._timed = (time.monotonic(), 0)

    # -- nets ----------------------------------------------------------------------------------------------------------

    def _train_definition(self, dialect: str | Dialect | None) -> Definition:
        param = self.param
        given = [f for f in ("net", "net_param", "train_net", "train_net_param") if param.HasField(f)]
        if len(given) != 1:
            raise CaffeError(
                self.path,
                " and ".join(given) or "no net",
                expected="one of net, net_param, train_net, train_net_param",
            )
        return self._definition(getattr(param, given[0]), TRAIN, param.train_state, dialect)

    def _test_definitions(self, dialect: str | Dialect | None) -> list[Definition]:
        param = self.param
        sources = [*param.test_net_param, *param.test_net]
        generic = param.net if param.HasField("net") else param.net_param if param.HasField("net_param") else None
        wanted = len(param.test_iter)
        if wanted < len(sources) or (generic is None and wanted != len(sources)):
            raise CaffeError(
                self.path, f"{wanted} test_iter for {len(sources)} test nets", expected="one for each test net"
            )
        sources += [generic] * (wanted - len(sources))
        if param.test_state and len(param.test_state) != len(sources):
            raise CaffeError(
                self.path,
                f"{len(param.test_state)} test_state for {len(sources)} test nets",
                expected="none, or one for each",
            )
        if sources and param.test_interval <= 0:
            raise CaffeError(self.path, "test nets without a test_interval", expected="a test_interval above 0")
        states = list(param.test_state) or [type(param.train_state)()] * len(sources)
        return [self._definition(s, TEST, state, dialect) for s, state in zip(sources, states, strict=True)]

    def _definition(self, source: Any, phase: int, state: Any, dialect: str | Dialect | None) -> Definition:
        if isinstance(source, str):
            source = self.find(source)
        definition = read_net(source, phase=phase, state=state, dialect=dialect)
        if phase == TEST and definition.dialect.test_nets_crop_at_random:
            for layer in definition.net.layer:
                if not layer.bottom:
                    layer.phase = TRAIN
        return definition

    def find(self, name: str) -> Path:
        """A file that the solver names: from the working directory as Caffe takes it, or beside the solver's file."""
        beside = Path(self.path).parent / name
        for path in (Path(name), beside):
            if path.exists():
                return path
        raise FileError(name, f"not there, and not at {beside} either", expected=f"a file, as {self.path} says")

    def _check_prefix(self) -> None:
        prefix = self.param.snapshot_prefix
        if not prefix:
            raise CaffeError(self.path, "snapshot without snapshot_prefix", expected="where to write snapshots")
        if not Path(prefix).parent.is_dir():
            raise FileError(prefix, f"no folder {Path(prefix).parent}", remedy="make it, or change snapshot_prefix")

    def load(self, files: Iterable[str | Path]) -> None:
        """Load weights into the training net and, as Caffe does, into the test nets."""
        for file in files:
            path = self.find(str(file).strip())
            for net in (self.net, *self.test_nets):
                self.log.line(f"Finetuning from {path}")
                net.load(path)

    # -- training ------------------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Train to ``max_iter``, with Caffe's last snapshot, last loss and last test."""
        param = self.param
        self.stopped = False
        self.log.line(f"Solving {self.net.definition.net.name}")
        self.log.line(f"Learning Rate Policy: {param.lr_policy}")
        self.step(param.max_iter - self.iter)
        if param.snapshot_after_train and (not param.snapshot or self.iter % param.snapshot):
            self.snapshot(off_interval=not self.stopped)
        if self.stopped:
            self.log.line("Optimization stopped early.")
            return
        if param.display and self.iter % param.display == 0:
            with torch.no_grad():
                loss, _ = self.net.losses()
            shown = self.average.add(float(loss)) if self.dialect.smooths_last_loss else float(loss)
            self.log.loss(self.iter, shown)
        if param.test_interval and self.iter % param.test_interval == 0:
            self.test_all()
        self.log.line("Optimization Done.")

    def step(self, iterations: int) -> None:
        """Train for so many iterations more."""
        param, start = self.param, self.iter
        self.average.start()
        self._timed = (time.monotonic(), self.iter)
        while self.iter < start + iterations and not self.stopped:
            if (
                param.test_interval
                and self.iter % param.test_interval == 0
                and (self.iter or param.test_initialization)
            ):
                self.test_all()
                if self.stopped:
                    return
            self._iterate()
            request = self.requested()
            if request == "snapshot" or (param.snapshot and self.iter % param.snapshot == 0):
                self.snapshot()
            self.stopped = request == "stop"

    def _iterate(self) -> None:
        param, self.boundary = self.param, None
        display = bool(param.display) and self.iter % param.display == 0
        self.net.clear_param_diffs()
        for on_start, _ in self.callbacks:
            on_start()
        total = np.float32(0)
        for _ in range(param.iter_size):
            loss, outputs = self._train_pass()
            total += np.float32(loss)
        shown = self.average.add(float(total / np.float32(param.iter_size)))
        if display:
            self.log.loss(self.iter, shown, speed=self._speed() if self.dialect.logs_speed else None)
            self.log.scores("Train", scores(self.net, outputs))
        for _, on_gradients_ready in self.callbacks:
            on_gradients_ready()
        self.apply_update(display)

    def _train_pass(self) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward over one batch: the loss, the outputs."""
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
    def apply_update(self, display: bool = False) -> None:
        """One update from the gradients that the parameters hold; counts the iteration."""
        param = self.param
        self.current_step = schedule.steps_done(param, self.iter, self.current_step)
        rate = schedule.rate(param, self.iter, self.current_step)
        if display:
            self.log.rate(self.iter, rate)
        decays = [param.weight_decay * p.decay_mult for p in self.learned]
        moving = [i for i, decay in enumerate(decays) if self._moves(i, decay)]
        weights = [self.learned[i].parameter for i in moving]
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        clipped = update.clip(param, grads)
        if clipped:
            self.log.clipped(*clipped, param.clip_gradients)
        update.prepare(param, self.dialect, weights, grads, [decays[i] for i in moving])
        late = self.dialect.decay_before_iter_size and param.type == "SGD"
        local = [rate * self.learned[i].lr_mult / (param.iter_size if late else 1) for i in moving]
        histories = [[h[i] for i in moving] for h in self.history]
        self.rule.update(param, grads, histories, update.Rates(local, self.iter))
        torch._foreach_sub_(weights, grads)
        self.iter += 1

    def _moves(self, i: int, decay: float) -> bool:
        """Whether an update changes parameter ``i`` or its history.

        Caffe updates all. One without a gradient can still decay (into a history of gradients even if its rate is 0),
        or go on by its momentum.
        """
        learned = self.learned[i]
        if learned.parameter.grad is not None:
            return True
        if i not in self._idle:
            decays = bool(decay) and bool(learned.lr_mult or not self.rule.of_steps)
            if decays or any(h[i].any() for h in self.history):
                return True
            self._idle.add(i)
        return False

    # -- testing -------------------------------------------------------------------------------------------------------

    def test_all(self) -> None:
        """Score every test net with the training net's parameters."""
        self.boundary = snapshot.position(self)
        for i in range(len(self.test_nets)):
            if not self.stopped:
                self.test(i)

    def test(self, i: int) -> list[Scores]:
        """Score test net ``i`` over its ``test_iter`` batches: the means of its outputs."""
        self.log.line(f"Iteration {self.iter}, Testing net (#{i})")
        net, param = self.test_nets[i], self.param
        net.share_parameters(self.net)
        sums: list[np.float32] = []
        loss = np.float32(0)
        for _ in range(param.test_iter[i]):
            if self._asked_to_stop():
                self.log.line("Test interrupted.")
                return []
            batch_loss, outputs = self._test_pass(net)
            loss += np.float32(batch_loss)
            found = scores(net, outputs)
            sums = [a + np.float32(s.value) for a, s in zip(sums or [np.float32(0)] * len(found), found, strict=True)]
        n = np.float32(param.test_iter[i])
        if param.test_compute_loss:
            self.log.line(f"Test loss: {self.log.number(float(loss / n))}")
        means = [Scores(s.name, s.weight, float(total / n)) for s, total in zip(found, sums, strict=True)]
        self.log.scores("Test", means)
        return means

    @torch.no_grad()
    def _test_pass(self, net: Net) -> tuple[float, dict[str, Tensor]]:
        """Forward over one batch: the loss, the outputs."""
        loss, outputs = net.losses()
        return loss.item(), outputs

    def _asked_to_stop(self) -> bool:
        while (request := self.requested()) != "none":
            if request == "snapshot":
                self.snapshot()
            else:
                self.stopped = True
                break
        return self.stopped

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, *, off_interval: bool = False) -> Path:
        """Write weights and state under Caffe's names; the state's path."""
        adds_one = off_interval and self.dialect.snapshot_off_interval_adds_one
        return snapshot.write(self, f"{self.param.snapshot_prefix}_iter_{self.iter + adds_one}")

    def restore(self, path: str | Path) -> None:
        """Go on from a .solverstate or .solverstate.h5, of ours or of real Caffe's."""
        snapshot.read(self, path)
        self._idle.clear()


def scores(net: Net, outputs: dict[str, Tensor]) -> list[Scores]:
    """Every number of every output, in Caffe's order."""
    return [
        Scores(name, net.loss_weights.get(name, 0.0), value)
        for name in net.outputs
        for value in outputs[name].flatten().tolist()
    ]


def _learned(net: Net) -> Iterator[Learned]:
    """The net's own parameters (a shared one once) with their multipliers, in Caffe's order."""
    seen: set[int] = set()
    for node, layer in net.nodes:
        for i, name in enumerate(layer.blob_names):
            blob = layer.aliases.get(name, getattr(layer, name))
            if id(blob) in seen:
                continue
            seen.add(id(blob))
            spec = node.message.param[i] if i < len(node.message.param) else None
            frozen = not isinstance(blob, nn.Parameter)
            lr = 0.0 if frozen else spec.lr_mult if spec else 1.0
            yield Learned(f"{layer.name}.{name}", blob, lr, spec.decay_mult if spec else 1.0)
