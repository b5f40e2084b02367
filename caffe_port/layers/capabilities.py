"""Capabilities of some layers beyond :class:`caffe_port.layers.base.Layer`, declared by inheritance.

What every layer has, with a default, is a method of ``Layer`` itself (``channel_affine``), or of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from caffe_port.layers.base import Layer
from caffe_port.schema.plugins import WRITES

__all__ = [
    "Filters",
    "FusesReLU",
    "Fusible",
    "Positioned",
    "PrefersChannelsLast",
    "Product",
    "RunsCode",
    "Stateful",
    "WritesFiles",
]


class Stateful:
    """Keeps state between passes that is not a parameter blob and that a resumed training needs."""

    def state(self) -> dict[str, str]:
        """The state that the next pass continues from, as JSON-compatible data."""
        raise NotImplementedError

    def restore(self, state: dict[str, str]) -> None:
        """Continue from a :meth:`state`."""
        raise NotImplementedError


class Positioned(Stateful):
    """Reads data from a position, which arrays represent cheaply."""

    def get_position(self) -> dict[str, Any]:
        """The position of the next batch: arrays by name."""
        raise NotImplementedError

    def set_position(self, state: dict[str, Any]) -> None:
        """Continue from a position."""
        raise NotImplementedError


class RunsCode:
    """Runs code that the definition names.

    Attributes:
        allowed: whether it may; the net sets it before ``setup``.
    """

    allowed = False


class WritesFiles:
    """Writes files that the definition names.

    Attributes:
        allowed: whether it may; the net sets it before ``setup``.
    """

    allowed = False

    def check_writes(self, path: str) -> None:
        """Raise where writing is not allowed; ``setup`` calls this first.

        Raises:
            LayerError: writing is not allowed.
        """
        if not self.allowed:
            assert isinstance(self, Layer)
            remedy = f"to allow it: allow_writes=True, --allow-writes, or {WRITES}=1 in the environment"
            raise self.error(f"it writes {path!r}", remedy=remedy)


@dataclass(frozen=True)
class Product:
    """A layer as rows times a matrix.

    Attributes:
        matrix: (outputs, inputs). bias: added to every row of outputs. rows: their approximate number.
        run: the layer, given the product to use. scale: a factor for each output, or for each channel of the result
            if there is ``after``, which is added to the channels of the result.
    """

    matrix: Tensor
    bias: Tensor | None
    rows: int
    run: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
    scale: Tensor | None = None
    after: Tensor | None = None


@dataclass(frozen=True)
class Filters:
    """A layer as a convolution over two spatial axes.

    Attributes:
        weight: (outputs, inputs / group, height, width). bias: (outputs).
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int


class Fusible:
    """Is linear in its bottom, so that weights can be packed and following layers folded into them."""

    def fusible(self) -> bool:
        """Whether this layer is, with its geometry."""
        raise NotImplementedError

    def form_key(self, x: Tensor) -> Hashable:
        """The properties of ``x`` that determine the form."""
        raise NotImplementedError

    def form(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Product | Filters:
        """The layer on bottoms like ``x``, its output channels times ``scale``, plus ``bias`` in place of its own.

        Args:
            x: a bottom. scale, bias: a number for each output channel.
        """
        raise NotImplementedError


class FusesReLU:
    """Can apply the ReLU that follows in place while it computes."""

    def with_relu(self, x: Tensor) -> Tensor | None:
        """The layer and the ReLU on its top in one step; None if the memory layout of ``x`` does not allow it."""
        raise NotImplementedError


class PrefersChannelsLast:
    """Trains faster in channels-last layout."""

    def prefers_channels_last(self, x: Tensor) -> bool:
        """Whether it trains faster on bottoms like ``x``."""
        raise NotImplementedError
