"""Layers in Python that the definitions of test_pycaffe_python.py name."""

from __future__ import annotations

from typing import Any

import numpy as np

import caffe_port


class Affine(caffe_port.Layer):
    """weight * x + param_str, with a weight for each of the last axis; notes how it was called."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.shift = float(self.param_str or 0)
        self.calls: list[str] = ["setup"]
        self.blobs.add_blob(bottom[0].shape[-1])
        self.blobs[0].data[...] = 3

    def reshape(self, bottom: Any, top: Any) -> None:
        self.calls.append("reshape")
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: Any, top: Any) -> None:
        self.calls.append("forward")
        top[0].data[...] = self.blobs[0].data * bottom[0].data + self.shift

    def backward(self, top: Any, propagate_down: list[bool], bottom: Any) -> None:
        self.calls.append(f"backward {propagate_down}")
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).reshape(-1, bottom[0].shape[-1]).sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = self.blobs[0].data * top[0].diff


class Distance(caffe_port.Layer):
    """Half the squared distance of two bottoms, for each item; a loss if the definition sets it."""

    def setup(self, bottom: Any, top: Any) -> None:
        if len(bottom) != 2:
            raise ValueError("two bottoms are needed")

    def reshape(self, bottom: Any, top: Any) -> None:
        self.difference = np.zeros_like(bottom[0].data)
        top[0].reshape(1)

    def forward(self, bottom: Any, top: Any) -> None:
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = (self.difference**2).sum() / bottom[0].num / 2

    def backward(self, top: Any, propagate_down: list[bool], bottom: Any) -> None:
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * top[0].diff * self.difference / bottom[i].num


class Source(caffe_port.Layer):
    """Counts its passes and outputs its phase."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.passes = 0
        top[1].reshape()

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(self.passes + 1)

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] = np.arange(self.passes + 1)
        top[1].data[()] = self.phase
        self.passes += 1


class InPlace(caffe_port.Layer):
    """Adds to what it finds."""

    def setup(self, bottom: Any, top: Any) -> None:
        assert bottom[0] is top[0]

    def reshape(self, bottom: Any, top: Any) -> None:
        pass

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] += 1

    def backward(self, top: Any, propagate_down: list[bool], bottom: Any) -> None:
        bottom[0].diff[...] *= 2


class Watcher(caffe_port.Layer):
    """Has no tops; keeps what it saw."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.seen: list[float] = []

    def reshape(self, bottom: Any, top: Any) -> None:
        pass

    def forward(self, bottom: Any, top: Any) -> None:
        self.seen.append(float(bottom[0].data.sum()))


class Faulty(caffe_port.Layer):
    """Raises in the method that its param_str names."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.fail("setup")

    def reshape(self, bottom: Any, top: Any) -> None:
        self.fail("reshape")
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: Any, top: Any) -> None:
        self.fail("forward")

    def backward(self, top: Any, propagate_down: list[bool], bottom: Any) -> None:
        self.fail("backward")

    def fail(self, where: str) -> None:
        if self.param_str == where:
            raise ZeroDivisionError(where)


class Half(caffe_port.Layer):
    """Lacks forward."""

    def setup(self, bottom: Any, top: Any) -> None:
        pass

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(*bottom[0].shape)


class OneWay(Half):
    """Lacks backward."""

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] = bottom[0].data


class Foreign:
    """Is no layer."""
