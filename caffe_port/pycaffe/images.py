"""Reading and resizing pictures as pycaffe does with scikit-image; here with Pillow and SciPy.

Source: python/caffe/io.py (both programs); scikit-image of their time, without anti-aliasing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from caffe_port.data.picture_files import opened_picture
from caffe_port.errors import ShapeError

__all__ = ["load_image", "oversample", "resize_image"]

_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
"""scikit-image's weights of red, green and blue (ITU-R 709)."""


def load_image(filename: str | os.PathLike, color: bool = True) -> np.ndarray:
    """A picture file as a float32 array, 0 to 1.

    The decoder is Pillow's; another release of libjpeg may differ by 1/255 in a JPEG.

    Args:
        color: False gives one channel, the luminance of a coloured picture.

    Returns:
        (height, width, 3) in RGB without alpha, or (height, width, 1).

    Raises:
        FileError: there is no such file. FormatError: it is not a picture.
    """
    image = _as_float(_pixels(filename))
    if image.ndim == 3 and not color:
        image = image[:, :, :3] @ _LUMINANCE
    image = image.astype(np.float32)
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
        return np.tile(image, (1, 1, 3)) if color else image
    return image[:, :, :3]


def _pixels(filename: str | os.PathLike) -> np.ndarray:
    """The file's pixels as scikit-image reads them: palettes resolved, 16 bits kept, two or three axes."""
    with opened_picture(os.fspath(filename)) as picture:
        mode = picture.mode
        if mode == "P":
            grey = _grey_palette(picture)
            mode = "L" if grey else "RGBA" if "transparency" in picture.info else "RGB"
        elif mode == "1":
            mode = "L"
        elif mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            mode = "RGB"
        elif "A" in mode:
            mode = "RGBA"
        return np.array(picture if mode == picture.mode else picture.convert(mode))


def _grey_palette(picture: Any) -> bool:
    palette = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
    low, high = picture.getextrema()
    used = palette[low : high + 1]
    return bool((used[:, :1] == used).all())


def _as_float(pixels: np.ndarray) -> np.ndarray:
    """Integers to 0..1 by their type's range, as img_as_float does; floats unchanged."""
    if pixels.dtype.kind == "u":
        return pixels / np.float64(np.iinfo(pixels.dtype).max)
    if pixels.dtype.kind == "i":
        return np.maximum(pixels / np.float64(np.iinfo(pixels.dtype).max), -1)
    return pixels


def resize_image(im: np.ndarray, new_dims: Sequence[int] | np.ndarray, interp_order: int = 1) -> np.ndarray:
    """A picture resized, without anti-aliasing.

    Pictures of one or three channels are interpolated between pixel centres, with 0 beyond the border (after
    rescaling the picture to 0..1), which darkens the border of an enlarged picture, as in scikit-image. Orders 1 and 2
    equal it to a few 1e-6; order 0 may use the other of two equally near pixels, and order 3 was another curve in
    releases before 0.19. Other pictures are resized with aligned corners, by ``scipy.ndimage.zoom`` as in pycaffe.

    Args:
        im: (height, width, channels). new_dims: (height, width).
        interp_order: 0 nearest, 1 linear, up to 5.

    Returns:
        float32, (new height, new width, channels).

    Raises:
        ShapeError: ``im`` does not have three axes, or has no pixel.
    """
    from scipy.ndimage import zoom

    if im.ndim != 3 or not im.size:
        raise ShapeError("resize_image", f"a picture of shape {im.shape}", expected="(height, width, channels)")
    factors = (*(new / np.float64(old) for new, old in zip(new_dims, im.shape, strict=False)), 1)
    if im.shape[-1] not in (1, 3):
        return zoom(im, factors, order=interp_order).astype(np.float32)
    low, high = im.min(), im.max()
    if not high > low:
        return np.full((*new_dims, im.shape[-1]), low, np.float32)
    standard = ((im - low) / (high - low)).astype(np.float64)
    size = (*(int(n) for n in new_dims), im.shape[-1])
    resized = np.empty(size)
    zoom(standard, factors, output=resized, order=interp_order, mode="grid-constant", grid_mode=True)
    return (np.clip(resized, 0, 1) * (high - low) + low).astype(np.float32)


def oversample(images: Iterable[np.ndarray], crop_dims: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ten crops of each picture: four corners, the centre, and the five mirrored.

    Args:
        images: (height, width, channels) each, of one size. crop_dims: (height, width).

    Returns:
        float32, (10 for each picture, crop height, crop width, channels).
    """
    images = list(images)
    size, crop = np.array(images[0].shape[:2]), np.array(crop_dims)
    corners = [(y, x) for y in (0, size[0] - crop[0]) for x in (0, size[1] - crop[1])]
    starts = [*corners, tuple((size / 2.0 - crop / 2.0).astype(int))]
    crops = [im[y : y + crop[0], x : x + crop[1]] for im in images for y, x in starts]
    fives = np.array(crops, np.float32).reshape(len(images), 5, *crop, -1)
    return np.concatenate([fives, fives[:, :, :, ::-1]], 1).reshape(-1, *fives.shape[2:])
