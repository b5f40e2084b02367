"""Recurrent layers over batches of sequences.

Source: recurrent_layer.cpp, lstm_layer.cpp, lstm_unit_layer.cpp, rnn_layer.cpp. Caffe unrolls each into a net with one
copy of the weights a time step; the blobs, their order and their names are that net's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.data.position import pack, unpack
from caffe_port.errors import LayerError
from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.capabilities import Stateful
from caffe_port.layers.functions import symbolic
from caffe_port.spec import products


def lstm_unit(c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: the new cell and hidden state.

    Args:
        c: the cell before, (..., H).
        gates: the inputs of the input, forget and output gates and of the candidate, (..., 4 H).
        cont: 0 where a sequence begins, else 1, (..., 1).
    """
    i, f, o, g = gates.chunk(4, -1)
    c = torch.sigmoid(f) * cont * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


@layer("LSTMUnit")
class LSTMUnit(products.LSTMUnit, Layer):
    """One LSTM step on cells (1, N, H), gates (1, N, 4 H), continuation marks (1, N): the new cells and states."""

    def forward(self, c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_unit(c, gates, cont.unsqueeze(-1))

    def caffe_gradient(self, b: Backward) -> Gradients:
        raise _refusal(self)


def _refusal(layer: Layer) -> LayerError:
    """The error for gradients of recurrent layers whose blobs were overwritten, which are not implemented."""
    return layer.error(
        "a blob that an in-place layer overwrote before it is read backward",
        remedy='give that layer a separate top, or use true derivatives: gradients="true"',
    )


class _Recurrent(products.Recurrent, Layer, Stateful):
    """Bottoms: sequences (T, N, ...), continuation marks (T, N): 0 at a sequence's first step, else 1; a static input
    (N, ...) of every step (optional); with ``expose_hidden`` the states to start from. Tops: outputs (T, N, H),
    and with ``expose_hidden`` the last states, each (1, N, H).

    Without ``expose_hidden`` a batch starts from the last states of the previous one, initially from zeros. No gradient
    passes between batches, nor through exposed states. Under torch.func's transforms and with fake tensors nothing is
    kept for the next batch.
    """

    @property
    def untraceable(self) -> str:
        return "it continues from the previous batch" if self.keeps_state else ""

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        super().setup(x, cont, *others)
        self.keeps_state = not self.exposes
        for name in self.states:
            self.register_buffer(name, torch.zeros(1, x[1], self.size), persistent=False)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        weight, bias, static = (getattr(self, blob.name) for blob in self.blob_specs[:3])
        entering = F.linear(x.flatten(2), weight, bias)
        if self.static:
            entering = entering + F.linear(others[0].flatten(1), static)
        states = tuple(s[0].detach() for s in others[self.static :]) if self.exposes else self.carried(x)
        hidden = []
        for entry, go_on in zip(entering, cont.unsqueeze(-1), strict=True):
            states = self.step(entry, go_on, states)
            hidden.append(states[0])
        last = tuple(s.detach().unsqueeze(0) for s in states)
        outputs = self.output(torch.stack(hidden))
        if self.exposes:
            return (outputs, *last)
        if torch.compiler.is_compiling() or not symbolic(*last):
            for name, state in zip(self.states, last, strict=True):
                setattr(self, name, state)
        return (outputs,)

    def caffe_gradient(self, b: Backward) -> Gradients:
        raise _refusal(self)

    def state(self) -> dict[str, str]:
        """The state that the next batch continues from, as JSON-compatible data, for :meth:`restore`."""
        return pack({name: getattr(self, name).cpu().numpy() for name in self.states})

    def restore(self, state: dict[str, str]) -> None:
        """Continue from a :meth:`state`."""
        for name, array in unpack(state).items():
            setattr(self, name, torch.from_numpy(array).view(1, -1, self.size).to(getattr(self, name)))

    def carried(self, x: Tensor) -> tuple[Tensor, ...]:
        """The last states of the previous batch; zeros if it had another number of streams."""
        kept = [getattr(self, name)[0] for name in self.states]
        if kept[0].is_inference() and not x.is_inference():
            kept = [s.clone() for s in kept]  # autograd does not accept tensors created in inference mode
        return tuple(s if len(s) == x.shape[1] else x.new_zeros(x.shape[1], self.size) for s in kept)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step's states, from its inputs (N, gates * H), marks (N, 1), earlier states (N, H)."""
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        """The outputs (T, N, H) from the values of the first state at all steps."""
        return hidden


@layer("LSTM")
class LSTM(products.LSTM, _Recurrent):
    """Long short-term memory; gates in the order input, forget, output, candidate."""

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        super().setup(x, cont, *others)
        self.drawn_again = ["W_hc"] * (self.steps - 1)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = states
        c, h = lstm_unit(c, entry + F.linear(h * go_on, self.W_hc), go_on)
        return h, c


@layer("RNN")
class RNN(products.RNN, _Recurrent):
    """h = tanh(W_hh h + W_xh x + b_h); the output is tanh(W_ho h + b_o)."""

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        super().setup(x, cont, *others)
        self.drawn_again = ["W_hh", "W_ho", "b_o"] * (self.steps - 1)

    def step(self, entry: Tensor, go_on: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tanh(entry + F.linear(states[0] * go_on, self.W_hh)),)

    def output(self, hidden: Tensor) -> Tensor:
        return torch.tanh(F.linear(hidden, self.W_ho, self.b_o))
