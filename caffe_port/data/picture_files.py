"""Untrusted picture files: their sizes are read from their heads before anything is decoded.

A file of a hundred bytes can declare a picture of a billion pixels, for which OpenCV and Pillow take the memory. All
pictures are read by these functions.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import error as StructError
from struct import unpack, unpack_from
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from caffe_port.errors import CaffeError, FileError, FormatError
from caffe_port.paths import is_file, is_folder

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["AS_IT_IS", "COLOR", "GRAY", "LARGEST", "decode_picture", "load_picture", "opened_picture", "picture_size"]

COLOR, GRAY, AS_IT_IS = 1, 0, -1
"""OpenCV's IMREAD_COLOR (BGR), IMREAD_GRAYSCALE and IMREAD_UNCHANGED."""

LARGEST = 89_478_485
"""Pixels of a picture with three channels of 8 bits: 256 MiB. The same number as Pillow warns at."""

_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
_HEAD = 1 << 12
_PILLOW = 5
"""Bytes for each pixel: Pillow has four, and what it converts them to lies beside them."""
_MOST_CHUNKS = 1 << 20
_FAR = 1 << 23
"""Bytes in front of a JPEG's size: colour profiles and thumbnails; more count as damage."""


class Size(NamedTuple):
    """A picture's size, and the bytes that a decoder takes for each pixel."""

    width: int
    height: int
    depth: int = 3


def _png(head: bytes, file: BinaryIO) -> Size | None:
    """The header's size, if all chunks lie in the file: OpenCV takes memory for the length that a chunk says it has.

    It looks for pixels (IDAT) beyond the end (IEND), too.
    """
    width, height, bits, kind = unpack_from(">IIBB", head, 16)
    at, end, pixels = 8, file.seek(0, 2), False
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        length, name = unpack(">I4s", file.read(8))
        at += 12 + length
        if at > end:
            return None
        pixels = pixels or name == b"IDAT"
        if name == b"IEND" and pixels:
            break
    else:
        return None
    return Size(width, height, bits * {0: 1, 2: 3, 4: 2, 6: 4}.get(kind, 1) // 8)


def _jpeg(head: bytes, file: BinaryIO) -> Size | None:
    """The first frame header; as libjpeg, bytes between segments that are not a marker are skipped."""
    at = 2
    while True:
        at = head.find(b"\xff", at)
        if at < 0 or at + 9 > len(head):
            more = file.read(_FAR) if len(head) <= _HEAD else b""
            if not more:
                return None
            head, at = head + more, max(at, 2)
            continue
        marker = head[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 + (marker != 0xFF)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, parts = unpack_from(">HHB", head, at + 5)
            # A progressive picture's coefficients are kept, 16 bits each.
            return Size(width, height, 3 * parts if marker in (0xC2, 0xC6, 0xCA, 0xCE) else parts)
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")


def _bmp(head: bytes, _: BinaryIO) -> Size:
    if unpack_from("<I", head, 14)[0] == 12:
        width, height = unpack_from("<HH", head, 18)
        return Size(width, height)
    width, height = unpack_from("<ii", head, 18)
    return Size(width, abs(height))


def _gif(head: bytes, _: BinaryIO) -> Size:
    width, height = unpack_from("<HH", head, 6)
    return Size(width, height, 4)


def _webp(head: bytes, _: BinaryIO) -> Size:
    kind = head[12:16]
    if kind == b"VP8X":
        whole = int.from_bytes(head[24:30], "little")
        return Size((whole & 0xFFFFFF) + 1, (whole >> 24) + 1, 4)
    if kind == b"VP8L":
        bits = unpack_from("<I", head, 21)[0]
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 4)
    width, height = unpack_from("<HH", head, 26)
    return Size(width & 0x3FFF, height & 0x3FFF)


def _tiff(head: bytes, file: BinaryIO) -> Size:
    """The first directory's size; a tile or strip larger than the picture counts as its size."""
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    file.seek(unpack_from(order + "Q", head, 8)[0] if big else unpack_from(order + "I", head, 4)[0])
    count = unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
    length, place = (20, 12) if big else (12, 8)
    entries = file.read(length * min(count, _HEAD))
    tags: dict[int, int] = {}
    for at in range(0, len(entries) - length + 1, length):
        tag, kind, number = unpack_from(order + ("HHQ" if big else "HHI"), entries, at)
        form = {1: "B", 3: "H", 4: "I", 16: "Q" if big else ""}.get(kind)
        if not form:
            continue
        if tag == 258 and number * 2 > length - place:  # the bits of each channel lie elsewhere
            file.seek(unpack_from(order + ("Q" if big else "I"), entries, at + place)[0])
            tags.setdefault(tag, unpack(order + "H", file.read(2))[0])
        else:
            tags.setdefault(tag, unpack_from(order + form, entries, at + place)[0])
    rows = tags.get(278, 0)
    width = max(tags.get(256, 0), tags.get(322, 0))
    height = max(tags.get(257, 0), tags.get(323, 0), rows if rows < 2**32 - 1 else 0)
    return Size(width, height, max(1, tags.get(277, 1)) * max(1, tags.get(258, 8) // 8))


def _jp2(head: bytes, file: BinaryIO) -> Size | None:
    """The code stream's size. OpenJPEG takes 4 bytes for a channel's pixel, and a kilobyte for a tile's channel."""
    at = 0
    if head[:4] != b"\xff\x4f\xff\x51":
        for _ in range(_HEAD):
            file.seek(at)
            length, kind, longer = unpack(">I4sQ", file.read(16))
            if kind == b"jp2c":
                at += 16 if length == 1 else 8
                break
            at += max(longer if length == 1 else length, 8)
    file.seek(at)
    right, bottom, left, top, wide, high, from_x, from_y, channels = unpack(">8IH", file.read(42)[8:])
    width, height = max(right - left, 0), max(bottom - top, 0)
    tiles = -(-max(right - from_x, 0) // max(wide, 1)) * -(-max(bottom - from_y, 0) // max(high, 1))
    return Size(width, height, max(4 * channels, 1100 * tiles * (channels + 5) // max(width * height, 1)))


def _sun(head: bytes, _: BinaryIO) -> Size:
    return Size(*unpack_from(">II", head, 4))


def _netpbm(head: bytes, _: BinaryIO) -> Size | None:
    """P1 to P7, PF, Pf: numbers after comments, or after WIDTH, HEIGHT and DEPTH."""
    text = re.sub(rb"#[^\n]*", b"", head[2:])
    if head[1:2] == b"7":
        named = {k: int(v) for k, v in re.findall(rb"(WIDTH|HEIGHT|DEPTH)\s+(\d{1,19})", text)}
        return Size(named.get(b"WIDTH", 0), named.get(b"HEIGHT", 0), 2 * named.get(b"DEPTH", 1))
    numbers = re.match(rb"\s*(\d{1,19})\s+(\d{1,19})\s", text)
    return Size(int(numbers[1]), int(numbers[2]), 12 if head[1:2] in b"Ff" else 6) if numbers else None


def _radiance(head: bytes, _: BinaryIO) -> Size | None:
    found = re.findall(rb"[-+]Y\s+(\d{1,19})\s+[-+]X\s+(\d{1,19})", head)
    return _largest_of([(int(x), int(y)) for y, x in found], 12)


def _exr(head: bytes, _: BinaryIO) -> Size | None:
    boxes = [unpack_from("<4i", head, found.end() + 4) for found in re.finditer(rb"dataWindow\0box2i\0", head[:-20])]
    return _largest_of([(right - left + 1, bottom - top + 1) for left, top, right, bottom in boxes], 16)


def _heif(head: bytes, file: BinaryIO) -> Size | None:
    """The largest of the images in the file (boxes ``ispe``)."""
    head += file.read(16 * _HEAD)
    return _largest_of([unpack_from(">II", head, found.end() + 4) for found in re.finditer(b"ispe", head[:-12])], 8)


def _largest_of(sizes: Sequence[tuple[int, ...]], depth: int) -> Size | None:
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return Size(width, height, depth) if sizes else None


_KINDS: tuple[tuple[re.Pattern[bytes], Callable[[bytes, BinaryIO], Size | None]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), parse)
    for pattern, parse in (
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"\xff\xd8\xff", _jpeg),
        (rb"BM", _bmp),
        (rb"GIF8[79]a", _gif),
        (rb"RIFF....WEBP", _webp),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", _tiff),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jp2),
        (rb"\x59\xa6\x6a\x95", _sun),
        (rb"P[1-7Ff]", _netpbm),
        (rb"#\?R", _radiance),
        (rb"v/1\x01", _exr),
        (rb"....ftyp", _heif),
    )
)


def picture_size(file: BinaryIO) -> Size | None:
    """A picture's size by its head; None if it is damaged, or of no kind that OpenCV reads."""
    head = file.read(_HEAD)
    parse = _parser(head)
    try:
        return parse(head, file) if parse else None
    except (StructError, OverflowError, ValueError):
        return None


def _parser(head: bytes) -> Callable[[bytes, BinaryIO], Size | None] | None:
    return next((parse for pattern, parse in _KINDS if pattern.match(head)), None)


def _check(size: Size, where: str, name: str) -> None:
    """Refuse a picture that would take too much memory."""
    given = os.environ.get(_VARIABLE, "")
    limit = int(given) if re.fullmatch("[0-9]{1,19}", given) else LARGEST
    if size.width * size.height * max(size.depth, 3) > 3 * limit:
        raise FormatError(
            where,
            f"{name} of {size.width} x {size.height} pixels, {max(size.depth, 3)} bytes each",
            expected=f"at most {3 * limit} bytes",
            remedy=f"the environment variable {_VARIABLE} raises the limit",
        )


def load_picture(path: str, flag: int, where: str) -> Any:
    """The picture in a file by OpenCV: (height, width) or (height, width, channels), uint8 unless AS_IT_IS.

    Args:
        flag: COLOR, GRAY or AS_IT_IS. where: what asks for it, for errors.

    Raises:
        FileError: there is no such file. FormatError: OpenCV cannot read it, or it is too large.
    """
    import cv2

    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  for every picture: a Path costs
            size = picture_size(file)
    except OSError as error:
        raise FileError(where, f"{path}, which cannot be read: {error.strerror}") from None
    return _read(size, lambda: cv2.imread(path, flag), flag, where, (path, f"{path}, which OpenCV cannot read"))


def decode_picture(data: bytes, flag: int, where: str) -> Any:
    """The picture in a file's bytes, as :func:`load_picture`."""
    import cv2

    size, array = picture_size(io.BytesIO(data)), np.frombuffer(data, np.uint8)
    return _read(size, lambda: cv2.imdecode(array, flag), flag, where, ("a picture", "data that OpenCV cannot decode"))


def _read(size: Size | None, read: Callable[[], Any], flag: int, where: str, names: tuple[str, str]) -> Any:
    import cv2

    picture = None
    if size is not None:
        _check(size, where, names[0])
        with suppress(cv2.error, MemoryError):
            picture = read()
    # OpenCV's reader of PFM ignores the flag.
    as_asked = flag == AS_IT_IS or (picture is not None and (picture.dtype, picture.ndim) == (np.uint8, 2 + flag))
    if picture is None or not as_asked:
        raise FormatError(where, names[1], expected="a picture (JPEG, PNG, ...)")
    return picture


@contextmanager
def opened_picture(path: str | Path, where: str = "") -> Iterator[Image]:
    """A picture as Pillow has it, not yet decoded; what Pillow raises while it is read becomes ours.

    Args:
        where: what asks for it, for errors; without, the path.

    Raises:
        FileError: it is not there. FormatError: Pillow cannot read it, or it is too large.
    """
    from PIL import Image

    where, name = (where, str(path)) if where else (str(path), "a file")
    if not is_file(path):
        raise FileError(where, "a folder" if is_folder(path) else "no such file", expected="a picture")
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            size = picture_size(file)
            file.seek(0)
            if size is not None:
                _check(size, where, name)
            elif _parser(file.read(_HEAD)):  # Pillow reads further kinds, and knows their sizes before it decodes
                raise ValueError("its header is damaged")
        with Image.open(path) as picture:
            _check(Size(picture.width, picture.height, _PILLOW), where, name)
            yield picture
    except CaffeError:
        raise
    except Exception as error:  # what Pillow's readers raise: OSError, SyntaxError, struct.error, KeyError ...
        found = f"{name}, which cannot be read ({error})"
        raise FormatError(where, found, expected="a picture (JPEG, PNG, ...)") from error
