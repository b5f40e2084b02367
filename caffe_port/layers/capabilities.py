"""What some layers can do beside :class:`caffe_port.layers.base.Layer`; a class that can says so by inheriting it.

What every layer answers, with a default, is a method of ``Layer`` itself (``channel_affine``), or of its record.
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
    """Keeps something from pass to pass that is no parameter blob, and that a resumed training needs."""

    def state(self) -> dict[str, str]:
        """What the next pass goes on from, as text that JSON can hold."""
        raise NotImplementedError

    def restore(self, state: dict[str, str]) -> None:
        """Go on from a :meth:`state`."""
        raise NotImplementedError


class Positioned(Stateful):
    """Reads data from a position, which as arrays costs nothing to keep."""

    def get_position(self) -> dict[str, Any]:
        """Where the next batch starts: arrays by name."""
        raise NotImplementedError

    def set_position(self, state: dict[str, Any]) -> None:
        """Go there."""
        raise NotImplementedError


class RunsCode:
    """Runs code that the definition names.

    Attributes:
        allowed: whether it may; the net says so before ``setup``.
    """

    allowed = False


class WritesFiles:
    """Writes files that the definition names.

    Attributes:
        allowed: whether it may; the net says so before ``setup``.
    """

    allowed = False

    def check_writes(self, path: str) -> None:
        """Refuse to be built where writing is not allowed; the first thing that ``setup`` does.

        Raises:
            LayerError: it is not.
        """
        if not self.allowed:
            assert isinstance(self, Layer)
            remedy = f"to allow that: allow_writes=True, --allow-writes, or {WRITES}=1 in the environment"
            raise self.error(f"it writes {path!r}", remedy=remedy)


@dataclass(frozen=True)
class Product:
    """A layer as rows times a matrix.

    Attributes:
        matrix: (outputs, inputs). bias: added to every row of outputs. rows: about how many.
        run: the layer, given the product to use. after: added to the channels of what ``run`` gave.
    """

    matrix: Tensor
    bias: Tensor | None
    rows: int
    run: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
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
    """Is linear in its bottom, so that its weights can be prepared and what follows it folded into them."""

    def fusible(self) -> bool:
        """Whether this one is, in its geometry."""
        raise NotImplementedError

    def form_key(self, x: Tensor) -> Hashable:
        """What of ``x`` decides the form."""
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
        """The layer and the ReLU on its top at once; None if ``x`` lies so that this cannot be."""
        raise NotImplementedError


class PrefersChannelsLast:
    """Learns quicker where the channels of a pixel lie side by side."""

    def prefers_channels_last(self, x: Tensor) -> bool:
        """Whether it does on bottoms like ``x``."""
        raise NotImplementedError
