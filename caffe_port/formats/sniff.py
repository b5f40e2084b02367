"""Detection of file formats by their first bytes; errors for files that hold no weights."""

from __future__ import annotations

from caffe_port.errors import FormatError
from caffe_port.formats.wire import BYTES, FIXED32, VARINT, Buffer, Reader

__all__ = ["kind_of", "protobuf_kind", "refuse_others"]

_SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"PK\x03\x04", "zip"),
)

_PICKLE = ("a Python pickle", "pickles are never read: save a state_dict with PyTorch 1.6 or later, or an .npz")
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "run `git lfs pull`, or download it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (b"BZh", "a bzip2 archive", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it with 7z x"),
    (b"Rar!", "a RAR archive", "unpack it with unrar"),
    (b"\x93NUMPY", "a single NumPy array", "save named arrays with np.savez"),
    *((bytes((0x80, protocol)), *_PICKLE) for protocol in (2, 3, 4, 5)),
)
_STATE = {(1, VARINT), (2, BYTES), (3, BYTES), (4, VARINT), (5, FIXED32), (6, VARINT)}
_TAR_AT, _TAR = 257, b"ustar"
_HEAD = 1024
_LARGEST_HEADER = 100_000_000  # the safetensors format's limit


def kind_of(buffer: Buffer) -> str:
    """The container, by the first bytes of ``buffer``: "hdf5", "zip", "safetensors" or "protobuf"."""
    head = bytes(buffer[:9])
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    return "protobuf"


def refuse_others(buffer: Buffer, path: str, expected: str) -> None:
    """Raises FormatError with the format and a remedy if ``buffer`` has a known format other than ``expected``."""
    head = bytes(buffer[:_HEAD])
    if not head:
        raise FormatError(path, "an empty file", expected=expected, remedy="fetch it again")
    for signature, what, remedy in _OTHERS:
        if head.startswith(signature):
            raise FormatError(path, what, expected=expected, remedy=remedy)
    if head[_TAR_AT:].startswith(_TAR):
        raise FormatError(path, "a tar archive", expected=expected, remedy="unpack it with tar xf")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        remedy = "the download went wrong: open the address in a browser and save the file itself"
        raise FormatError(path, "a web page", expected=expected, remedy=remedy)
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        first = text.splitlines()[0][:40].decode("utf-8", "replace") if text.strip() else ""
        remedy = "a .prototxt goes to --prototxt" if b"layer" in text or b"name:" in text else "fetch the file again"
        raise FormatError(path, f"text ({first!r} ...)", expected=expected, remedy=remedy)


def protobuf_kind(buffer: Buffer, path: str) -> str:
    """A message's kind, by its top-level fields: "caffemodel", "solverstate", "blob" (mean image), "onnx model", "".

    Raises:
        FormatError: the bytes are not a protobuf message, or are truncated.
    """
    fields = {(number, wire) for number, wire in Reader(buffer, path=path)}
    if fields & {(2, BYTES), (100, BYTES)} and (1, VARINT) not in fields:
        return "caffemodel"
    if (1, VARINT) in fields and fields & {(3, BYTES), (4, VARINT)} and fields <= _STATE:
        return "solverstate"
    if (5, BYTES) in fields and {number for number, _ in fields} <= {1, 2, 3, 4, 5, 6, 7}:
        return "blob"
    return "onnx model" if {(1, VARINT), (7, BYTES)} <= fields else ""
