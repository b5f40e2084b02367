"""Layers whose weights are matrices: inner products, embeddings and recurrence.

Source: inner_product_layer.cpp, embed_layer.cpp, recurrent_layer.cpp, lstm_layer.cpp, lstm_unit_layer.cpp,
rnn_layer.cpp. The names of the recurrent layers' blobs are the parameter names of the net that they unroll.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from caffe_port.spec.base import BIAS, BVLC, Blob, Shape, Spec, record

__all__ = ["LSTM", "RNN", "Embed", "InnerProduct", "LSTMUnit", "Recurrent"]

_TABLE = (Blob("weight", 2, "weight_filler"), BIAS)


@record("InnerProduct", "inner_product_param")
class InnerProduct(Spec):
    in_place = False
    reads_bottoms = (0,)
    blob_specs = _TABLE
    reads = ("num_output", "transpose")

    def setup(self, x: Shape) -> None:
        self.from_axis = self.axis(self.p.axis, x)
        self.length = prod(x[self.from_axis :])
        shape = (self.num_output, self.length)
        self.make_blobs(shape[::-1] if self.transpose else shape, (self.num_output,))

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse_shape(
            prod(x[self.from_axis :]) != self.length,
            f"{prod(x[self.from_axis :])} values for each item in a bottom of shape {x}",
            expected=f"{self.length}, as the weights have",
        )
        return [(*x[: self.from_axis], self.num_output)]

    def uses(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return prod(bottoms[0][: self.from_axis])


@record("Embed", "embed_param", BVLC)
class Embed(Spec):
    in_place = False
    labels = reads_bottoms = (0,)
    blob_specs = _TABLE
    reads = ("num_output", "input_dim")

    def setup(self, x: Shape) -> None:
        self.refuse(
            min(self.num_output, self.input_dim) < 1,
            f"num_output {self.num_output}, input_dim {self.input_dim}",
            expected="at least 1 each",
        )
        self.make_blobs((self.input_dim, self.num_output), (self.num_output,))

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x, self.num_output)]


@record("LSTMUnit", None, BVLC)
class LSTMUnit(Spec):
    bottoms = (3, 3)
    tops = (2, 2)
    labels = (2,)
    in_place = False
    reads_bottoms, reads_tops = (0, 1, 2), (0,)

    def reshape(self, c: Shape, gates: Shape, cont: Shape) -> list[Shape]:
        self.refuse_shape(
            len(c) != 3 or c[0] != 1 or gates != (1, c[1], 4 * c[2]) or cont != c[:2],
            f"bottoms of shapes {c}, {gates} and {cont}",
            expected="(1, num, size), (1, num, 4 * size) and (1, num)",
        )
        return [c, c]


def _static(layer: Any) -> bool:
    return layer.n_bottoms == 3 + layer.exposed


class Recurrent(Spec):
    """Bottoms: sequences (T, N, ...), continuation marks (T, N); a static input (N, ...) (optional); with
    ``expose_hidden`` the states to start from. Tops: outputs (T, N, H), and with ``expose_hidden`` the last states."""

    bottoms = (2, None)
    tops = (1, None)
    labels = (1,)
    in_place = False
    reads = ("size=num_output", "exposes=expose_hidden")
    ignores = ("debug_info",)
    states: ClassVar[tuple[str, ...]]
    """The states passed from step to step, in the order of the exposed bottoms and tops."""
    gates: ClassVar[int]
    """Rows of the input's and the state's weights, as a multiple of num_output."""

    @property
    def exposed(self) -> int:
        """The number of states that are bottoms and tops."""
        return len(self.states) * self.exposes

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        exposed, self.static = self.exposed, _static(self)
        self.refuse(
            self.n_bottoms not in (2 + exposed, 3 + exposed) or self.n_tops != 1 + exposed,
            f"{self.n_bottoms} bottoms and {self.n_tops} tops",
            expected=f"{2 + exposed} bottoms, or with a static input {3 + exposed}, and {1 + exposed} tops",
        )
        self.refuse(self.size < 1, f"num_output {self.size}", expected="at least 1")
        self.refuse_shape(
            len(x) < 3 or (self.static and len(others[0]) < 2),
            f"bottoms of shapes {x}, {others[:1]}",
            expected="(steps, streams, ...) and (streams, ...)",
        )
        self.labels = (1, *range(self.n_bottoms - exposed, self.n_bottoms))
        self.reads_bottoms = (0, 1, 2)[: 2 + self.static]
        self.steps, rows = x[0], self.gates * self.size
        static = prod(others[0][1:]) if self.static else 0
        own = [(self.size, self.size), (self.size,)]
        shapes = [(rows, prod(x[2:])), (rows,), (rows, static), (rows, self.size), *own]
        self.make_blobs(*shapes[: len(self.blob_specs)])

    def reshape(self, x: Shape, cont: Shape, *others: Shape) -> list[Shape]:
        state = (1, x[1], self.size)
        static, exposed = others[: self.static], others[self.static :]
        self.refuse_shape(x[0] != self.steps, f"{x[0]} steps", expected=f"{self.steps}, as when the net was built")
        self.refuse_shape(
            cont != x[:2] or any(s[0] != x[1] for s in static) or any(s != state for s in exposed),
            f"bottoms of shapes {(x, cont, *others)}",
            expected=f"marks {x[:2]}, {x[1]} static inputs, states {state}",
        )
        names = self.blob_specs[0].name, self.blob_specs[2].name
        for shape, lead, name in zip((x, *static), (2, 1), names, strict=False):
            self.refuse_shape(
                prod(shape[lead:]) != self.blob_shapes[name][1],
                f"{shape}",
                expected=f"{self.blob_shapes[name][1]} values for each item, as {name} has",
            )
        return [(*x[:2], self.size)] + [state] * len(exposed)

    def uses(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return prod(bottoms[0][:2])


def _weights(inputs: str, bias: str, hidden: str) -> tuple[Blob, ...]:
    return (
        Blob(inputs, 2, "weight_filler"),
        Blob(bias, 1, "bias_filler"),
        Blob(f"{inputs}_static", 2, "weight_filler", when=_static),
        Blob(hidden, 2, "weight_filler"),
    )


@record("LSTM", "recurrent_param", BVLC)
class LSTM(Recurrent):
    states = ("h", "c")
    gates = 4
    blob_specs = _weights("W_xc", "b_c", "W_hc")


@record("RNN", "recurrent_param", BVLC)
class RNN(Recurrent):
    states = ("h",)
    gates = 1
    blob_specs = (
        *_weights("W_xh", "b_h", "W_hh"),
        Blob("W_ho", 2, "weight_filler"),
        Blob("b_o", 1, "bias_filler"),
    )
