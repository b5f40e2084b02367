"""What SSD does to pixels: resizing with a drawn interpolation, padding, noise, and distortion of colours.

Pictures are as OpenCV has them: uint8 (height, width) or (height, width, channels), BGR. Parameters are messages.

Source: util/im_transforms.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.data.batches import Array
from caffe_port.errors import CaffeError, ShapeError
from caffe_port.random import CRand, Stream

__all__ = ["channels", "distort", "noised", "resize", "resized_size"]

F = np.float32
_INTERPOLATION = {1: "INTER_LINEAR", 2: "INTER_AREA", 3: "INTER_NEAREST", 4: "INTER_CUBIC", 5: "INTER_LANCZOS4"}
_BORDER = {1: "BORDER_CONSTANT", 2: "BORDER_REFLECT101", 3: "BORDER_REPLICATE"}
_POSTERS = (np.arange(256) // 64 * 64 + 32).astype(np.uint8)
"""Four levels for the 256."""


def channels(picture: Array) -> int:
    """1 or the length of the last axis."""
    return 1 if picture.ndim == 2 else picture.shape[2]


def uniform(stream: Stream, low: float, high: float) -> Any:
    """A number of np.float32."""
    return stream.uniform(low, high, 1, fused=False)[0]


# -- resizing ----------------------------------------------------------------------------------------------------------


def resized_size(p: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) of what a picture of this size becomes (InferNewSize)."""
    if p.resize_mode != p.FIT_SMALL_SIZE:
        return p.height, p.width
    aspect = F(width) / F(height)
    if aspect < F(p.width) / F(p.height):
        return int(F(p.width) / aspect), p.width
    return p.height, int(aspect * F(p.height))


def resize(picture: Array, p: Any, stream: Stream, where: str) -> Array:
    """Resize by a ``resize_param``. An interpolation is drawn as soon as one is listed; ``prob`` is never read.

    Raises:
        CaffeError: pad_value given neither once nor for each channel. ShapeError: no pixels would be left.
    """
    import cv2

    flag = cv2.INTER_LINEAR
    if p.interp_mode:
        n = len(p.interp_mode)
        sums = np.cumsum(np.full(n, F(1) / F(n), F), dtype=F)
        drawn = int(np.searchsorted(sums, uniform(stream, 0, sums[-1].item())))
        flag = getattr(cv2, _INTERPOLATION[p.interp_mode[drawn]])
    pad: Any = _for_channels(list(p.pad_value), channels(picture), "pad_value", where) or [0]
    (height, width), aspect = picture.shape[:2], F(picture.shape[1]) / F(picture.shape[0])
    pads: Any = [0, 0, 0, 0]
    if p.resize_mode != p.FIT_LARGE_SIZE_AND_PAD:
        height, width = resized_size(p, height, width)
    elif aspect > F(p.width) / F(p.height):
        height, width = int(F(p.width) / aspect), p.width
        pads[0] = (p.height - height) // 2
        pads[1] = p.height - height - pads[0]
    else:
        height, width = p.height, int(aspect * F(p.height))
        pads[2] = (p.width - width) // 2
        pads[3] = p.width - width - pads[2]
    if min(height, width) < 1:
        raise ShapeError(
            where,
            f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels, which would become {width} x {height}",
            expected="a resize_param that leaves pixels",
        )
    try:
        picture = cv2.resize(picture, (width, height), interpolation=flag)
        if p.resize_mode != p.FIT_LARGE_SIZE_AND_PAD:
            return picture
        border: Any = getattr(cv2, _BORDER[p.pad_mode])
        top, bottom, left, right = pads
        return cv2.copyMakeBorder(
            picture, top, bottom, left, right, border, value=pad[:3]
        )  # a fourth channel is padded with 0
    except cv2.error as error:
        raise _failed(error, "resize_param", where) from error


def _for_channels(values: list[float], count: int, what: str, where: str) -> list[float]:
    """``values`` for each channel, from one or as many; [] for none."""
    if len(values) not in (0, 1, count):
        raise CaffeError(where, f"{len(values)} {what} for {count} channels", expected=f"one, or {count}")
    return values * count if len(values) == 1 else values


def _failed(error: Any, what: str, where: str) -> CaffeError:
    return CaffeError(where, f"{what} that OpenCV cannot do: {getattr(error, 'err', None) or error}")


# -- noise -------------------------------------------------------------------------------------------------------------


def noised(picture: Array, p: Any, stream: Stream, where: str) -> Array:
    """The picture after a ``noise_param``, whose ``prob`` is never read: whatever it names is done.

    Blur, erosion and saltpepper write into the picture itself unless something before them made another, as in the
    original, where a frame of VideoData is transformed twice.

    Returns:
        uint8 (height, width, n). After ``convert_to_lab`` the bytes of float32 numbers, as the original goes on with.

    Raises:
        CaffeError: what a picture with so many channels does not allow; saltpepper without or with too few values.
    """
    import cv2

    try:
        return _noised(picture, p, stream, where)
    except cv2.error as error:
        raise _failed(error, "noise_param", where) from error


def _noised(picture: Array, p: Any, stream: Stream, where: str) -> Array:
    import cv2

    if p.decolorize:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if p.gauss_blur:
        cv2.GaussianBlur(picture, (7, 7), 1.5, dst=picture)
    if p.hist_eq:
        picture = _on_luma(picture, cv2.equalizeHist)
    if p.clahe:
        picture = _on_luma(picture, cv2.createCLAHE(4).apply)
    if p.jpeg > 0:
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(p.jpeg)])[1]
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if p.erode:
        cv2.erode(picture, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3), anchor=(1, 1)), dst=picture)
    if p.posterize:
        picture = _POSTERS[picture]
    if p.inverse:
        picture = ~picture
    _for_channels(list(p.saltpepper_param.value), channels(picture), "saltpepper_param value", where)
    if p.saltpepper:
        _salt(picture, p.saltpepper_param, stream, where)
    if p.convert_to_hsv:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
    if p.convert_to_lab:
        lab = cv2.cvtColor(picture.astype(F) * F(1 / 255), cv2.COLOR_BGR2Lab)
        picture = lab.view(np.uint8)
    return picture


def _on_luma(picture: Array, change: Any) -> Array:
    """``change`` done to the brightness alone."""
    import cv2

    if picture.ndim == 2:
        return change(picture)
    parts = list(cv2.split(cv2.cvtColor(picture, cv2.COLOR_BGR2YCrCb)))
    parts[0] = change(parts[0])
    return cv2.cvtColor(cv2.merge(parts), cv2.COLOR_YCrCb2BGR)


def _salt(picture: Array, p: Any, stream: Stream, where: str) -> None:
    """Set a ``fraction`` of the pixels to ``value``; a pixel may be drawn twice."""
    height, width = picture.shape[:2]
    count = channels(picture)
    values = _for_channels(list(p.value), count, "saltpepper_param value", where)
    wrong = [v for v in values if not 0 <= v < 256]
    if not values or wrong or p.fraction < 0:
        found = f"value {wrong[0]:g}" if wrong else f"fraction {p.fraction:g}" if values else "no value"
        raise CaffeError(where, f"a saltpepper_param with {found}", expected="value of 0 to 255, fraction from 0")
    if count not in (1, 3):
        return
    number = int(F(p.fraction) * F(width) * F(height))
    words = stream.words(2 * number)
    picture[words[1::2] % height, words[::2] % width] = (
        np.array(values).astype(np.uint8) if count > 1 else int(values[0])
    )


# -- distortion --------------------------------------------------------------------------------------------------------


def distort(picture: Array, p: Any, stream: Stream, rand: CRand, where: str) -> Array:
    """Distort brightness, contrast, saturation and hue by a ``distort_param``, and reorder the channels.

    Args:
        rand: what channels are reordered with (std::random_shuffle).

    Raises:
        CaffeError: a range the wrong way round, or a picture that is not of three channels, when it is to be used.
    """
    import cv2

    def drawn(name: str) -> bool:
        return bool(uniform(stream, 0, 1) < F(getattr(p, f"{name}_prob")))

    def around(name: str) -> float:
        delta = getattr(p, f"{name}_delta")
        if delta < 0:
            raise CaffeError(where, f"{name}_delta {delta:g}", expected="0 or more")
        return float(uniform(stream, -delta, delta))

    def within(name: str) -> float:
        low, high = getattr(p, f"{name}_lower"), getattr(p, f"{name}_upper")
        if not 0 <= low <= high:
            found = f"{name}_lower {low:g} and {name}_upper {high:g}"
            raise CaffeError(where, found, expected=f"0 <= {name}_lower <= {name}_upper")
        return float(uniform(stream, low, high))

    def contrast(picture: Array) -> Array:
        if not drawn("contrast"):
            return picture
        factor = within("contrast")
        return _scaled(picture, factor, 0) if abs(float(F(factor) - F(1))) > 1e-3 else picture

    late = not uniform(stream, 0, 1) > 0.5
    try:
        if drawn("brightness"):
            picture = _scaled(picture, 1, around("brightness"))
        if not late:
            picture = contrast(picture)
        if drawn("saturation"):
            picture = _in_hsv(picture, 1, within("saturation"), 0)
        if drawn("hue"):
            delta = around("hue")
            picture = _in_hsv(picture, 0, 1, delta) if delta else picture
        if late:
            picture = contrast(picture)
        if drawn("random_order"):
            if channels(picture) != 3:
                raise CaffeError(where, f"{channels(picture)} channels to reorder", expected="3")
            order = [0, 1, 2]
            rand.shuffle(order)
            picture = np.ascontiguousarray(picture[..., order])
    except cv2.error as error:
        raise _failed(error, "distort_param", where) from error
    return picture


def _scaled(picture: Array, factor: float, offset: float) -> Array:
    """Times ``factor`` plus ``offset`` in single precision, rounded to even and cut to a byte (Mat::convertTo)."""
    table = np.rint(np.arange(256, dtype=F) * F(factor) + F(offset)).clip(0, 255).astype(np.uint8)
    return table[picture]


def _in_hsv(picture: Array, channel: int, factor: float, offset: float) -> Array:
    """The same for one of hue, saturation and value; a hue above 179 is what OpenCV makes of it."""
    import cv2

    hsv = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = _scaled(hsv[..., channel], factor, offset)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
