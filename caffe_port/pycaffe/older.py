"""What Net had in the pycaffe of the fork, and BVLC Caffe 1.0 has elsewhere. Source: python/caffe/pycaffe.py (noh)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.pycaffe import mode
from caffe_port.pycaffe.face import Face
from caffe_port.pycaffe.images import resize_image
from caffe_port.pycaffe.io import Transformer

__all__ = ["Older"]


class Older(Face):
    """The older methods of a :class:`caffe_port.pycaffe.net.Net`.

    Attributes:
        mean, input_scale, raw_scale, channel_swap: by input blob, what :meth:`preprocess` does with it.
    """

    mean: dict[str, np.ndarray]
    input_scale: dict[str, float]
    raw_scale: dict[str, float]
    channel_swap: dict[str, Sequence[int]]

    def set_phase_train(self) -> None:
        """From now on layers work as in training (dropout)."""
        self.train()

    def set_phase_test(self) -> None:
        """From now on layers work as in testing."""
        self.eval()

    def set_mode_cpu(self) -> None:
        """Bring this net to the CPU, and nets built from now on."""
        mode.set_mode_cpu()
        self.to(mode.device())

    def set_mode_gpu(self) -> None:
        """Bring this net to the GPU, and nets built from now on; without a GPU, one warning."""
        mode.set_mode_gpu(stacklevel=3)
        self.to(mode.device())

    def set_device(self, device_id: int) -> None:
        """Say which GPU is meant."""
        mode.set_device(device_id)
        self.to(mode.device())

    # -- pre-processing ------------------------------------------------------------------------------------------------

    def set_mean(self, input_: str, mean: np.ndarray, mode: str = "elementwise") -> None:
        """Subtract a (channels, height, width) mean, resized, or (``mode="channel"``) its channels' means."""
        shape = self._shape_of_input(input_)
        if mode == "channel":
            mean = mean.mean(1).mean(1).reshape(shape[1], 1, 1)
        elif mode != "elementwise":
            raise CaffeError("set_mean", f"mode {mode!r}", expected="elementwise or channel")
        elif mean.shape[1:] != shape[2:]:
            mean = resize_image(mean.transpose(1, 2, 0), shape[2:]).transpose(2, 0, 1)
        self.mean[input_] = mean

    def set_input_scale(self, input_: str, scale: float) -> None:
        """Multiply with this in the end."""
        self._shape_of_input(input_)
        self.input_scale[input_] = scale

    def set_raw_scale(self, input_: str, scale: float) -> None:
        """Multiply with this before the mean is subtracted."""
        self._shape_of_input(input_)
        self.raw_scale[input_] = scale

    def set_channel_swap(self, input_: str, order: Sequence[int]) -> None:
        """Take the channels in this order: (2, 1, 0) makes BGR of RGB."""
        self._shape_of_input(input_)
        self.channel_swap[input_] = order

    def preprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """A (height, width, channels) picture as the input wants it: float32, (channels, height, width)."""
        return self._transformer(input_name).preprocess(input_name, input_)

    def deprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """The steps of :meth:`preprocess` undone, but for the resizing."""
        return self._transformer(input_name).deprocess(input_name, input_)

    def _transformer(self, name: str) -> Transformer:
        t = Transformer({name: self._shape_of_input(name)})
        t.set_transpose(name, (2, 0, 1))
        t.mean, t.input_scale, t.raw_scale, t.channel_swap = (
            self.mean,
            self.input_scale,
            self.raw_scale,
            self.channel_swap,
        )
        return t

    def _shape_of_input(self, name: str) -> tuple[int, ...]:
        if name not in self.inputs:
            raise CaffeError("net", f"no input {name!r}", expected=", ".join(self.inputs) or "no inputs")
        return self.blobs[name].shape
