"""Fillers: what a new parameter, or a DummyData blob, starts with (filler.hpp of both Caffes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, LayerError, nearest
from caffe_port.random.stream import Stream

__all__ = ["FILLERS", "check_filler", "fill"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported

_FAN_OUT, _AVERAGE = 1, 2  # FillerParameter.VarianceNorm; FAN_IN is 0


@dataclass(frozen=True)
class _Job:
    """One blob to fill."""

    message: Any
    shape: tuple[int, ...]
    stream: Stream
    real: type
    legacy: bool
    fused: bool
    where: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        return self.count // self.shape[0]

    @property
    def fan_out(self) -> int:
        return self.count // self.shape[1] if len(self.shape) > 1 else self.count

    @property
    def fan(self) -> Any:
        """The number that xavier and msra scale by, in the blob's precision."""
        norm = self.message.variance_norm
        if norm == _AVERAGE:
            return self.real(self.fan_in + self.fan_out) / self.real(2)
        return self.real(self.fan_out if norm == _FAN_OUT else self.fan_in)

    def uniform(self, low: Any, high: Any) -> Array:
        return self.stream.uniform(low, high, self.count, self.real, fused=self.fused)

    def gaussian(self, mean: Any, std: Any) -> Array:
        return self.stream.gaussian(mean, std, self.count, self.real, fused=self.fused)


def _constant(job: _Job) -> Array:
    return np.full(job.count, job.message.value, job.real)


def _uniform(job: _Job) -> Array:
    return job.uniform(job.message.min, job.message.max)


def _gaussian(job: _Job) -> Array:
    """Normal numbers; with ``sparse`` about that many inputs of each output stay, the others are zeroed."""
    message = job.message
    data = job.gaussian(message.mean, message.std)
    if message.sparse >= 0:
        outputs = job.shape[2] if job.legacy else job.shape[0]
        if message.sparse > outputs:
            raise LayerError(job.where, f"sparse: {message.sparse}", expected=f"at most the {outputs} outputs")
        data *= job.stream.bernoulli(job.real(message.sparse) / job.real(outputs), job.count, job.real)
    return data


def _positive_unitball(job: _Job) -> Array:
    """Positive numbers that sum to 1 over each item of the first axis."""
    data = job.uniform(0, 1).reshape(job.shape[0], -1)
    data /= np.add.accumulate(data, axis=1)[:, -1:]  # one after the other as Caffe adds, not pairwise as np.sum does
    return data


def _xavier(job: _Job) -> Array:
    scale = np.sqrt(job.real(3) / job.fan)
    return job.uniform(-scale, scale)


def _msra(job: _Job) -> Array:
    return job.gaussian(0, np.sqrt(job.real(2) / job.fan))


def _bilinear(job: _Job) -> Array:
    """The same bilinear interpolation kernel in every (output, input) pair."""
    if len(job.shape) != 4 or job.shape[2] != job.shape[3]:
        raise LayerError(job.where, f"shape {job.shape}", expected="four axes, the last two equal")
    width = job.shape[3]
    half = math.ceil(width / 2)
    centre = job.real((width - 1) / (2.0 * half))
    line = 1 - np.abs(np.arange(width, dtype=job.real) / job.real(half) - centre)
    return np.broadcast_to(line[:, None] * line, job.shape).copy()


FILLERS: dict[str, Callable[[_Job], Array]] = {
    "bilinear": _bilinear,
    "constant": _constant,
    "gaussian": _gaussian,
    "msra": _msra,
    "positive_unitball": _positive_unitball,
    "uniform": _uniform,
    "xavier": _xavier,
}
"""Filler types by Caffe's names."""


def check_filler(filler: Any, where: str = "") -> None:
    """Refuse a filler with a NaN.

    Raises:
        LayerError: value, min, max, mean or std is NaN.
    """
    for name in ("value", "min", "max", "mean", "std"):
        if math.isnan(getattr(filler, name)):
            place = f"{where}: {filler.type} filler" if where else f"{filler.type} filler"
            raise LayerError(place, f"{name}: nan", expected="a number")


def fill(
    filler: Any,
    shape: Sequence[int],
    stream: Stream,
    dtype: Any = np.float32,
    *,
    legacy: bool = False,
    fused: bool = True,
    where: str = "",
) -> Array:
    """A new array of ``shape``, filled as Caffe fills a blob.

    Args:
        filler: a FillerParameter message.
        shape: the blob's shape as its Caffe sees it. In the fork that is always (num, channels, height, width), and
            (1, 1, outputs, inputs) for an inner product's weight, so that its xavier scales by the count of all
            weights.
        stream: what to draw from. It takes exactly the words that Caffe takes.
        dtype: float32 or float64; Caffe's two precisions draw different numbers.
        legacy: ``shape`` is one of the fork's (``Dialect.legacy_shapes``).
        fused: draw as a Caffe compiled with fused multiply-add, as the reference bvlc was and noh was not.
        where: the place of the filler, for errors.

    Raises:
        LayerError: an unknown type, or parameters or a shape that the filler's type cannot use.
    """
    shape = tuple(int(n) for n in shape)
    place = f"{where}: {filler.type} filler" if where else f"{filler.type} filler"
    if filler.type not in FILLERS:
        near = nearest(filler.type, FILLERS)
        raise LayerError(
            where or "filler",
            f"unknown filler type {filler.type!r}",
            remedy=f"did you mean {near}?" if near else f"known are {', '.join(FILLERS)}",
        )
    check_filler(filler, where)
    if filler.sparse != -1 and (filler.type != "gaussian" or filler.sparse < -1):
        raise LayerError(place, f"sparse: {filler.sparse}", expected="sparse only in a gaussian filler, 0 or more")
    axes_matter = filler.type not in ("constant", "uniform", "gaussian") or filler.sparse >= 0
    if 0 in shape or (axes_matter and not shape):
        raise LayerError(place, f"shape {shape}", expected="a blob with numbers in it")
    job = _Job(filler, shape, stream, np.dtype(dtype).type, legacy, fused, place)
    try:
        return FILLERS[filler.type](job).reshape(shape)
    except LayerError:
        raise
    except CaffeError as error:
        raise LayerError(place, error.found, expected=error.expected, remedy=error.remedy) from error
