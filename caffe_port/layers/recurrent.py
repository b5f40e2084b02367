"""Recurrent layers over batches of sequences.

Source: recurrent_layer.cpp, lstm_layer.cpp, lstm_unit_layer.cpp, rnn_layer.cpp. Caffe unrolls each into a net with one
copy of the weights a time step; the blobs, their order and their names are that net's.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.data.position import pack, unpack
from caffe_port.layers.base import Layer, Shape, layer


def lstm_unit(c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: the new cell and hidden state.

    Args:
        c: the cell before, (..., H).
        gates: what enters the input, forget and output gates and the candidate, (..., 4 H).
        cont: 0 where a sequence begins, else 1, (..., 1).
    """
    i, f, o, g = gates.chunk(4, -1)
    c = torch.sigmoid(f) * cont * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


@layer("LSTMUnit", dialects=("bvlc",))
class LSTMUnit(Layer):
    """One LSTM step on cells (1, N, H), gates (1, N, 4 H), continuation marks (1, N): the new cells and states."""

    bottoms = (3, 3)
    tops = (2, 2)
    labels = (2,)

    def reshape(self, c: Shape, gates: Shape, cont: Shape) -> list[Shape]:
        if len(c) != 3 or c[0] != 1 or gates != (1, c[1], 4 * c[2]) or cont != c[:2]:
            raise self.shape_error(
                f"bottoms of shapes {c}, {gates} and {cont}", expected="(1, num, size), (1, num, 4 * size) and (1, num)"
            )
        return [c, c]

    def forward(self, c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_unit(c, gates, cont.unsqueeze(-1))


class _Recurrent(Layer):
    """Bottoms: sequences (T, N, ...), continuation marks (T, N): 0 at a sequence's first step, else 1; a static input
    (N, ...) that every step sees (optional); with ``expose_hidden`` the states to start from. Tops: outputs (T, N, H),
    and with ``expose_hidden`` the last states, each (1, N, H).

    Without ``expose_hidden`` a batch starts from the states that the one before left, at first from zeros. No gradient
    passes between batches, nor through exposed states.
    """

    bottoms = (2, None)
    tops = (1, None)
    labels = (1,)
    states: tuple[str, ...]
    """What is handed from step to step, in the order of the exposed bottoms and tops."""
    gates: int
    """Rows of the input's and the state's weights, as a multiple of num_output."""
    names: tuple[str, ...]
    """Names of the input's weight and bias, the static input's weight and the state's weight."""

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        p = self.p
        p.skip("debug_info")
        self.size, self.exposes = p.num_output, p.expose_hidden
        self.keeps_state = not self.exposes
        exposed = len(self.states) * self.exposes
        self.static = self.n_bottoms == 3 + exposed
        if self.n_bottoms not in (2 + exposed, 3 + exposed) or self.n_tops != 1 + exposed:
            raise self.error(
                f"{self.n_bottoms} bottoms and {self.n_tops} tops",
                expected=f"{2 + exposed} bottoms, or with a static input {3 + exposed}, and {1 + exposed} tops",
            )
        if self.size < 1:
            raise self.error(f"num_output {self.size}", expected="at least 1")
        if len(x) < 3 or (self.static and len(others[0]) < 2):
            raise self.shape_error(
                f"bottoms of shapes {x}, {others[:1]}", expected="(steps, streams, ...) and (streams, ...)"
            )
        self.labels = (1, *range(self.n_bottoms - exposed, self.n_bottoms))
        self.steps = x[0]
        rows = self.gates * self.size
        weight, bias, static, hidden = self.names
        self.blob(weight, (rows, prod(x[2:])), p.weight_filler)
        self.blob(bias, (rows,), p.bias_filler)
        if self.static:
            self.blob(static, (rows, prod(others[0][1:])), p.weight_filler)
        self.blob(hidden, (rows, self.size), p.weight_filler)
        for name in self.states:
            self.register_buffer(name, torch.zeros(1, x[1], self.size), persistent=False)

    def reshape(self, x: Shape, cont: Shape, *others: Shape) -> list[Shape]:
        state = (1, x[1], self.size)
        static, exposed = others[: self.static], others[self.static :]
        if x[0] != self.steps:
            raise self.shape_error(f"{x[0]} steps", expected=f"{self.steps}, as when the net was built")
        if cont != x[:2] or any(s[0] != x[1] for s in static) or any(s != state for s in exposed):
            raise self.shape_error(
                f"bottoms of shapes {(x, cont, *others)}",
                expected=f"marks {x[:2]}, {x[1]} static inputs, states {state}",
            )
        inputs = [(x, self.names[0])] + [(s, self.names[2]) for s in static]
        for shape, name in inputs:
            lead = 2 if shape is x else 1
            if prod(shape[lead:]) != getattr(self, name).shape[1]:
                raise self.shape_error(
                    f"{shape}", expected=f"{getattr(self, name).shape[1]} numbers an item, as {name} has"
                )
        return [(*x[:2], self.size)] + [state] * len(exposed)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        weight, bias, static, _ = self.names
        entering = F.linear(x.flatten(2), getattr(self, weight), getattr(self, bias))
        if self.static:
            entering = entering + F.linear(others[0].flatten(1), getattr(self, static))
        states = tuple(s[0].detach() for s in others[self.static :]) if self.exposes else self.carried(x)
        hidden = []
        for entry, go_on in zip(entering, cont.unsqueeze(-1), strict=True):
            states = self.step(entry, go_on, states)
            hidden.append(states[0])
        last = tuple(s.detach().unsqueeze(0) for s in states)
        outputs = self.output(torch.stack(hidden))
        if self.exposes:
            return (outputs, *last)
        for name, state in zip(self.states, last, strict=True):
            setattr(self, name, state)
        return (outputs,)

    def state(self) -> dict[str, str]:
        """What the next batch goes on from, as text that JSON can hold, for :meth:`restore`."""
        return pack({name: getattr(self, name).cpu().numpy() for name in self.states})

    def restore(self, state: dict[str, str]) -> None:
        """Go on from a :meth:`state`."""
        for name, array in unpack(state).items():
            setattr(self, name, torch.from_numpy(array).view(1, -1, self.size).to(getattr(self, name)))

    def carried(self, x: Tensor) -> tuple[Tensor, ...]:
        """The states that the batch before left; zeros if it had another number of streams."""
        kept = [getattr(self, name)[0] for name in self.states]
        if kept[0].is_inference() and not x.is_inference():
            kept = [s.clone() for s in kept]  # autograd takes no tensors that inference mode made
        return tuple(s if len(s) == x.shape[1] else x.new_zeros(x.shape[1], self.size) for s in kept)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step's states, from what enters it (N, gates * H), marks (N, 1), earlier states (N, H)."""
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        """The outputs (T, N, H) that the first state's numbers at all steps give."""
        return hidden


@layer("LSTM", param="recurrent_param", dialects=("bvlc",))
class LSTM(_Recurrent):
    """Long short-term memory; gates in the order input, forget, output, candidate."""

    states = ("h", "c")
    gates = 4
    names = ("W_xc", "b_c", "W_xc_static", "W_hc")

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        super().setup(x, cont, *others)
        self.drawn_again = ["W_hc"] * (self.steps - 1)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = states
        c, h = lstm_unit(c, entry + F.linear(h * go_on, self.W_hc), go_on)
        return h, c


@layer("RNN", param="recurrent_param", dialects=("bvlc",))
class RNN(_Recurrent):
    """h = tanh(W_hh h + W_xh x + b_h); the output is tanh(W_ho h + b_o)."""

    states = ("h",)
    gates = 1
    names = ("W_xh", "b_h", "W_xh_static", "W_hh")

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        super().setup(x, cont, *others)
        self.blob("W_ho", (self.size, self.size), self.p.weight_filler)
        self.blob("b_o", (self.size,), self.p.bias_filler)
        self.drawn_again = ["W_hh", "W_ho", "b_o"] * (self.steps - 1)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tanh(entry + F.linear(states[0] * go_on, self.W_hh)),)

    def output(self, hidden: Tensor) -> Tensor:
        return torch.tanh(F.linear(hidden, self.W_ho, self.b_o))
