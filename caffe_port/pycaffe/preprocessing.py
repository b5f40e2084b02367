"""Preprocessing of pictures as in the fork's pycaffe; BVLC Caffe 1.0 has it in ``io.Transformer``.

Source: python/caffe/pycaffe.py (noh).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.layers.base import Shape
from caffe_port.pycaffe.images import resize_image
from caffe_port.pycaffe.io import Transformer

__all__ = ["Preprocessing"]


class Preprocessing:
    """The preprocessing settings of each input.

    Args:
        shape_of: returns an input's shape; raises for a name that is not an input's.

    Attributes:
        mean, input_scale, raw_scale, channel_swap: by input blob.
    """

    def __init__(self, shape_of: Callable[[str], Shape]) -> None:
        self.shape_of = shape_of
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}
        self.raw_scale: dict[str, float] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}

    def set_mean(self, input_: str, mean: np.ndarray, mode: str = "elementwise") -> None:
        """Subtract a (channels, height, width) mean, resized, or (``mode="channel"``) its channels' means."""
        shape = self.shape_of(input_)
        if mode == "channel":
            mean = mean.mean(1).mean(1).reshape(shape[1], 1, 1)
        elif mode != "elementwise":
            raise CaffeError("set_mean", f"mode {mode!r}", expected="elementwise or channel")
        elif mean.shape[1:] != shape[2:]:
            mean = resize_image(mean.transpose(1, 2, 0), shape[2:]).transpose(2, 0, 1)
        self.mean[input_] = mean

    def set_input_scale(self, input_: str, scale: float) -> None:
        """Set the factor applied last."""
        self.shape_of(input_)
        self.input_scale[input_] = scale

    def set_raw_scale(self, input_: str, scale: float) -> None:
        """Set the factor applied before the mean is subtracted."""
        self.shape_of(input_)
        self.raw_scale[input_] = scale

    def set_channel_swap(self, input_: str, order: Sequence[int]) -> None:
        """Set the order of channels: (2, 1, 0) converts RGB to BGR."""
        self.shape_of(input_)
        self.channel_swap[input_] = order

    def preprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """A (height, width, channels) picture in the input's form: float32, (channels, height, width)."""
        return self._transformer(input_name).preprocess(input_name, input_)

    def deprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`preprocess`, without the resizing."""
        return self._transformer(input_name).deprocess(input_name, input_)

    def _transformer(self, name: str) -> Transformer:
        t = Transformer({name: self.shape_of(name)})
        t.set_transpose(name, (2, 0, 1))
        t.mean, t.input_scale, t.raw_scale, t.channel_swap = (
            self.mean,
            self.input_scale,
            self.raw_scale,
            self.channel_swap,
        )
        return t
