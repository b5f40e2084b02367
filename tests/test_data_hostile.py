"""Data that someone else made: sizes are read before memory is taken, and nothing outside the files is read."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from data_runs import definition, passes
from fuzz_data import Folder, encoded

from caffe_port.data.boxes import box_file
from caffe_port.data.databases import read_datum
from caffe_port.data.hdf5_rows import Rows
from caffe_port.data.mat_files import read_mat
from caffe_port.data.picture_files import LARGEST, decode_picture, load_picture, opened_picture, picture_size
from caffe_port.data.pictures import GRAY, LabelMaps, Reader, labelled
from caffe_port.data.position import pack as packed
from caffe_port.data.scaled_segments import listed
from caffe_port.data.segments import segments
from caffe_port.errors import CaffeError, FileError, FormatError
from caffe_port.net import Net
from caffe_port.schema import SCHEMA


@pytest.mark.parametrize("name", encoded())
def test_a_pictures_size_is_what_opencv_decodes(name: str) -> None:
    size = picture_size(io.BytesIO(encoded()[name]))
    assert size is not None
    assert size[:2] == (16, 12)
    if name == ".pfm":  # which OpenCV reads in colour and as floats, whatever it is asked for
        with pytest.raises(FormatError):
            decode_picture(encoded()[name], GRAY, "x")
        return
    assert decode_picture(encoded()[name], GRAY, "x").shape == ((16, 12) if name == "exif.jpg" else (12, 16))


PIXELS, END = (pack(">I4sI", 0, name, 0) for name in (b"IDAT", b"IEND"))


def png(width: int, height: int, kind: int = 2, more: bytes = PIXELS + END) -> bytes:
    head = pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + head + bytes(4) + more


def jpeg(width: int, height: int, marker: int = 0xC0, before: bytes = b"") -> bytes:
    frame = pack(">HBHHB", 17, 8, height, width, 3) + bytes((1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0))
    return b"\xff\xd8" + before + bytes((0xFF, marker)) + frame


def tiff(order: str, tags: dict[int, int]) -> bytes:
    entries = b"".join(pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II" if order == "<" else b"MM") + pack(order + "HIH", 42, 8, len(tags)) + entries + bytes(4)


def jp2(width: int, height: int, tile: int) -> bytes:
    sizes = pack(">H8IH", 47, width, height, 0, 0, tile, tile, 0, 0, 3)
    stream = b"\xff\x4f\xff\x51" + pack(">H", 47) + sizes
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + pack(">I4s", 16, b"free") + b"\xff\x4f\xff\x51" + bytes(4)
    return boxes + pack(">I4s", 0, b"jp2c") + stream


LARGE = {
    "png": png(30_000, 30_000),
    "png with a palette": png(2**31 - 1, 2**31 - 1, 3),
    "jpeg": jpeg(65_500, 65_500),
    "progressive jpeg": jpeg(7_000, 7_000, 0xC2),
    "jpeg after other segments": jpeg(65_500, 65_500, 0xC1, b"\xff\xe1\0\x06abcd" * 999 + b"zz\xff\0\xff\xff\xff\xd0"),
    "bmp": b"BM" + bytes(12) + pack("<Iii", 40, 30_000, -30_000) + bytes(20),
    "old bmp": b"BM" + bytes(12) + pack("<IHH", 12, 60_000, 60_000),
    "gif": b"GIF89a" + pack("<HH", 65_535, 65_535) + bytes(3),
    "webp VP8X": b"RIFF\0\0\0\0WEBPVP8X" + pack("<II", 10, 0) + b"\xff" * 6,
    "webp VP8L": b"RIFF\0\0\0\0WEBPVP8L" + pack("<IB", 10, 0x2F) + b"\xff" * 4,
    "webp VP8": b"RIFF\0\0\0\0WEBPVP8 " + bytes(4) + b"\0\0\0\x9d\x01\x2a" + pack("<HH", 16_383, 16_383),
    "tiff": tiff("<", {256: 30_000, 257: 30_000}),
    "tiff of tiles": tiff(">", {256: 10, 257: 10, 322: 2**24, 323: 2**20}),
    "tiff of one strip": tiff(">", {256: 1000, 257: 10, 278: 2**31}),
    "jpeg 2000": jp2(30_000, 30_000, 30_000),
    "jpeg 2000 of tiles": jp2(1_000, 1_000, 1),
    "sun raster": pack(">III", 0x59A66A95, 30_000, 30_000),
    "ppm": b"P6\n# 1 1\n30000 30000 255\n",
    "pam": b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
    "radiance": b"#?RADIANCE\n-Y 1 +X 1\n\n-Y 30000 +X 30000\n",
    "exr": b"v/1\x01\2\0\0\0dataWindow\0box2i\0" + pack("<I4i", 16, 0, 0, 30_000, 30_000),
    "avif": b"\0\0\0\x1cftypavif"
    + bytes(30)
    + b"ispe"
    + pack(">III", 0, 1, 1)
    + b"ispe"
    + pack(">III", 0, 60_000, 60_000),
}


@pytest.mark.parametrize("name", LARGE)
def test_pictures_too_large_are_refused_by_their_heads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    from PIL import Image

    def never(*_: object) -> None:
        raise AssertionError("it is decoded")

    for module, function in ((cv2, "imread"), (cv2, "imdecode"), (Image, "open")):
        monkeypatch.setattr(module, function, never)
    monkeypatch.delenv("OPENCV_IO_MAX_IMAGE_PIXELS", raising=False)
    (tmp_path / "x.png").write_bytes(LARGE[name])
    reads: tuple[Callable[[], Any], ...] = (
        lambda: load_picture(str(tmp_path / "x.png"), 1, "list:1"),
        lambda: decode_picture(LARGE[name], 1, "list:1"),
        lambda: opened_picture(tmp_path / "x.png", "list:1").__enter__(),
        lambda: LabelMaps(Reader(Folder(tmp_path)), "d").read("x.png", "list:1"),
    )
    for read in reads:
        with pytest.raises(FormatError, match=f"^list:1: expected at most {3 * LARGEST} bytes.*MAX_IMAGE_PIXELS"):
            read()


def test_kinds_without_a_signature_are_refused_by_pillows_size(tmp_path: Path) -> None:
    """A TGA, which starts with no sign of what it is."""
    (tmp_path / "x.tga").write_bytes(bytes((0, 0, 2)) + bytes(9) + pack("<HH", 8_000, 8_000) + bytes((24, 0)))
    said = f"expected at most {3 * LARGEST} bytes, found a file of 8000 x 8000 pixels"
    with pytest.raises(FormatError, match=said), opened_picture(tmp_path / "x.tga"):
        raise AssertionError("it is opened")


@pytest.mark.parametrize("front", [b"", END], ids=["in front of IEND", "behind IEND"])
@pytest.mark.parametrize("length", [13, 5_000, 2**20])
def test_a_png_whose_chunks_lie_past_its_end(
    length: int, front: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    from PIL import Image

    monkeypatch.delattr(cv2, "imdecode")
    monkeypatch.delattr(Image, "open")
    data = png(16, 12, more=front + pack(">I4s", length, b"IDAT") + bytes(4) + END)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError, match="data that OpenCV cannot decode"):
        decode_picture(data, 1, "x")
    with pytest.raises(FormatError, match="its header is damaged"), opened_picture(tmp_path / "x"):
        pass


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(10**9))
    with pytest.raises(FormatError, match="data that OpenCV cannot decode"):
        decode_picture(jpeg(20_000, 20_000), 1, "x")  # no picture behind the head
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(FormatError, match="16 x 12 pixels"):
        decode_picture(encoded()[".png"], 1, "x")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\xff\xff" + bytes(9), b"P6 1", b"II*\0\xff\xff\xff\xff", b"text"]
)
def test_heads_without_a_size(data: bytes) -> None:
    with pytest.raises(FormatError, match="data that OpenCV cannot decode"):
        decode_picture(data, 1, "record")


def test_a_folder_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "m.png").mkdir()
    with pytest.raises(FileError, match=r"list:1: expected a picture, found the folder .*m\.png"):
        LabelMaps(Reader(Folder(tmp_path)), "d").read("m.png", "list:1")
    with pytest.raises(FileError, match="a folder"), opened_picture(tmp_path / "m.png"):
        pass


LISTS: list[tuple[Callable[[str], object], str, str]] = [
    (labelled, "p.png " + "9" * 400, "x:1: expected FILE LABEL"),
    (labelled, "p.png " + "9" * 5000, "x:1: expected FILE LABEL"),
    (labelled, "p.png 2147483648", "x:1: expected FILE LABEL"),
    (labelled, "p.png ٣", "x:1: expected FILE LABEL"),
    (labelled, "\np.png" + "x" * (1 << 20), "x:2: expected a text file"),
    (lambda path: listed(path, "IMAGE"), "p.png " + "9" * 400, "x:1: expected PICTURE NUMBER"),
    (
        lambda path: segments(path, labels=1, box=True, numbers=0),
        "p m 0 0 32767 32767",
        f"x:1: expected X1 Y1 X2 Y2 .*{LARGEST} pixels",
    ),
    (
        lambda path: segments(path, labels=1, box=True, numbers=0),
        "p m 0 0 1 " + "9" * 400,
        "x:1: expected PICTURE MASK",
    ),
]


@pytest.mark.parametrize(("read", "text", "said"), LISTS)
def test_lists(read: Callable[[str], object], text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(FormatError, match=said) as found:
        read(str(tmp_path / "x"))
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ("1\n1 0.9 5 0 4 8\n", "x:7: .*found the box 5 0 4 8"),
        ("2\n1 0.9 0 0 1 1\n0 0.1 0 9 1 8\n", "x:8: .*found the box 0 9 1 8"),
        ("1000000000\n", "x: expected a box, found the end"),
        ("1000000000000\n", "x:6: expected a number of boxes"),
        ("-1\n", "x:6: expected a number of boxes"),
        ("1\n1 nan 0 0 1 1\n", "x:7: expected CLASS OVERLAP"),
        pytest.param("1\n1 " + "9" * 100_000 + "\n", "x:7: expected CLASS OVERLAP", id="not in quadratic time"),
        ("1\n1 1e999 0 0 1 1\n", "x:7: expected whole numbers below"),
        ("1\n1 0.9 0 0 1 4000000000\n", "x:7: expected whole numbers below"),
        ("1\n1 0.9 0 0 1 1.5\n", "x:7: expected CLASS OVERLAP"),
        ("1\n0 0.9 0 0 1 1\n", "x:7: .*class 0"),
    ],
)
def test_window_files(boxes: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("# 0\np.png\n3\n9\n8\n" + boxes)
    with pytest.raises(FormatError, match=said):
        box_file(str(tmp_path / "x"), 0.5, 0.3)


def test_boxes_of_neither_kind_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("# 0\np.png\n3\n9\n8\n3\n1 0.9 0 0 1 1\n0 0.4 5 5 1 1\n0 1e-1 0 0 2 2\n")
    file = box_file(str(tmp_path / "x"), 0.5, 0.3)
    assert file.objects.tolist() == [[0, 1, 0, 0, 1, 1]]
    assert file.background.tolist() == [[0, 0, 0, 0, 2, 2]]


@pytest.mark.parametrize(
    "shape", [(-1, -1, 4), (0, 1, 1), (2**31 - 1, 2**31 - 1, 2**31 - 1), (2**31 - 1, 2**31 - 1, 4), (4, 1, -1)]
)
def test_shapes_of_records(shape: tuple[int, int, int]) -> None:
    record = SCHEMA.Datum(data=b"abcd", channels=shape[0], height=shape[1], width=shape[2])
    with pytest.raises(FormatError, match=re.escape("x".join(map(str, shape)))):
        read_datum(record.SerializeToString(), lambda data, where: data, "record 0")


def _external(file: Any, other: Path) -> None:
    file.create_dataset("data", (2, 3), "<f4", external=[(str(other), 0, 24)])


def _link(file: Any, other: Path) -> None:
    import h5py

    file["data"] = h5py.ExternalLink(str(other), "/data")


def _virtual(file: Any, other: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((2, 3), "<f4")
    layout[:] = h5py.VirtualSource(str(other), "data", (2, 3))
    file.create_virtual_dataset("data", layout)


def _circle(file: Any, _: Path) -> None:
    import h5py

    file["data"] = h5py.SoftLink("/data")


def _odd(file: Any, _: Path) -> None:
    import h5py

    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(1023)
    h5py.h5d.create(file.id, b"data", kind, h5py.h5s.create_simple((2, 3)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_external, "/data: expected arrays in this file, found numbers in another file"),
        (_link, "/data: expected arrays in this file, found a link to another file"),
        (_virtual, "/data: expected arrays in this file, found numbers in another file"),
        (_circle, "/data: a link to /data, which does not exist"),
        (_odd, "/data"),
        (
            lambda file, _: file.create_dataset("data", (10**6, 10**6), "<f4"),
            "/data: expected 4000000000000 for the shape",
        ),
        (lambda file, _: file.create_dataset("data", (2, 3), "<c8"), "/data: expected real numbers, found an array of"),
    ],
)
def test_hdf5_data_that_lies_elsewhere_or_nowhere(
    make: Callable[[Any, Path], object], said: str, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones((2, 3), "<f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.ones(2)
        make(file, tmp_path / "other.h5")
    (tmp_path / "list").write_text("a.h5\n")
    with pytest.raises(FormatError, match=re.escape(said)):
        Rows(str(tmp_path / "list"), Folder(tmp_path), ("data", "label"), None, four_axes=False)


def test_soft_links_within_a_file_are_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["real/data"], file["label"] = np.full((2, 3), 1e300), np.ones(2)
        file["data"] = h5py.SoftLink("/real/data")
    (tmp_path / "list").write_text("a.h5\n")
    rows = Rows(str(tmp_path / "list"), Folder(tmp_path), ("data", "label"), None, four_axes=False)
    assert np.isinf(rows.make(2)[0]).all()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4), (1, 1), (7, 1, 2), (3, 0)])
def test_matlab_files_as_scipy_writes_them(shape: tuple[int, ...], compressed: bool, tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    data = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    io.savemat(tmp_path / "x.mat", {"other": [1, 2], "data": data, "z": "text"}, do_compression=compressed)
    blob = read_mat(str(tmp_path / "x.mat"))
    assert blob.shape == (*(1,) * (4 - len(shape)), *shape[::-1])
    np.testing.assert_array_equal(blob, data.T.reshape(blob.shape))


def mat(flags: int, shape: tuple[int, ...], kind: int, numbers: bytes, size: int | None = None) -> bytes:
    parts = ((6, pack("<II", flags, 0)), (5, pack(f"<{len(shape)}i", *shape)), (1, b"data"), (kind, numbers))
    body = b"".join(pack("<II", code, len(part)) + part + bytes(-len(part) % 8) for code, part in parts)
    return bytes(124) + b"\0\1IM" + pack("<II", 14, len(body) if size is None else size) + body


def test_matlab_stores_whole_numbers_in_fewer_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(mat(7, (3, 2), 2, bytes(range(6))))
    assert read_mat(str(tmp_path / "x.mat")).tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no head"),
        (bytes(124) + b"\0\2IM", "no head"),
        (bytes(124) + b"\0\1IM", "no variable data"),
        (mat(7, (2**31 - 1, 2**31 - 1), 7, bytes(8)), "8 bytes for the shape"),
        (mat(7, (-1, -2), 7, bytes(8)), "8 bytes for the shape"),
        (mat(7, (1, 1), 7, bytes(4), 2**32 - 1), "an element of 4294967295 bytes"),
        (mat(7, (1, 1), 5, bytes(9)), "9 bytes for the shape"),
        (mat(7, (1, 1), 99, bytes(4)), "numbers of type 99"),
        (mat(6, (1, 1), 9, bytes(8)), "data of class 6 with 2 axes"),
        (mat(0x807, (1, 1), 7, bytes(4)), "data of class 7, complex, with 2 axes"),
        (mat(7, (1,) * 5, 7, bytes(4)), "with 5 axes"),
        (bytes(124) + b"\0\1IM" + pack("<II", 15, 3) + b"abc", "not a MATLAB file of version 5 (Error -3"),
    ],
)
def test_damaged_matlab_files(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(said)):
        read_mat(str(tmp_path / "x.mat"))


def test_a_batch_that_fits_no_memory(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "list").write_text(f"{tmp_path / 'p.png'} 1\n")
    block = f'image_data_param {{ source: "{tmp_path / "list"}" batch_size: 2000000000 }}'
    with pytest.raises(CaffeError, match="bytes"):
        list(passes(Net(definition("ImageData", block)), 1))


def whole(*numbers: int) -> str:
    return packed({"at": np.array(numbers)})["at"]


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("at", "<i8 !", "damaged text"),
        ("at", "|O " + "AAAA" * 2, "numbers of type '|O'"),
        ("at", "<V99999999999 AAAA", "numbers of type"),
        ("at", whole(1), "a position that does not fit"),
        ("at", whole(3, 3), "item 3 in an order of 3"),
        ("at", whole(-1, 3), "item -1 in an order of 3"),
        ("at", whole(0, 4), "one among 4"),
        ("order", whole(0, 1, 1), "item 1 in an order of 3"),
        ("order", whole(0, 1, 7), "item 1 in an order of 3"),
        ("order", whole(0, 1), "item 1 in an order of 2"),
        ("shuffle", whole(1, 2), "random state"),
    ],
)
def test_positions_from_others(key: str, text: str, said: str, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list").write_text(f"{tmp_path / 'p.png'} 1\n" * 3)
    more = "shuffle: true" if key != "at" else ""
    net = Net(definition("ImageData", f'image_data_param {{ source: "{tmp_path / "list"}" batch_size: 1 {more} }}'))
    layer: Any = net.get_submodule("d")
    state = layer.state() | ({"at": whole(1, 3)} if key != "at" else {})
    layer.restore(state)
    with pytest.raises(CaffeError, match=re.escape(said)):
        layer.restore(state | {key: text})
