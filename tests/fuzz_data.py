"""Hostile data: lists, window files, pictures, masks, HDF5 data. See :mod:`fuzzing`."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import numpy as np
from fuzz_hdf5 import change, hdf5_file
from fuzzing import Reader, integer, pick, register, word

from caffe_port.data import segments
from caffe_port.data.batches import Batches, Cursor
from caffe_port.data.boxes import BoxBatches, Sampling, box_file
from caffe_port.data.dense_images import DenseImages, pairs
from caffe_port.data.files import Places
from caffe_port.data.hdf5_rows import Rows
from caffe_port.data.mat_files import read_mat
from caffe_port.data.pictures import AS_IT_IS, LabelMaps, PictureBatches, decode, labelled
from caffe_port.data.pictures import Reader as PictureReader
from caffe_port.data.scaled_segments import ScaledSegments, ScaledTransformer, listed
from caffe_port.data.transform import Transformer
from caffe_port.random import CRand, Stream
from caffe_port.segmentation.voc import read_labels, read_picture

SIZE = 9, 8
"""Height and width of the pictures that lists name."""
BOX_KINDS = (
    *(segments.Pictures, segments.Windows, segments.InstanceWindows, segments.BinaryWindows),
    *(segments.ClassWindows, segments.SelectedWindows),
)
CODES = (".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".ras", ".hdr", ".gif", ".pam", ".pfm")


class Folder(Places):
    """Names are looked for in a folder alone."""

    def __init__(self, folder: Path) -> None:
        self.folders = [str(folder)]


def transformer(crop: int = 0) -> Transformer:
    made = Transformer(scale=1, mirror=True, crop=crop, mean=np.ones(3, np.float32), train=True)
    made.seed(1)
    return made


def two_batches(batches: Batches) -> None:
    for _ in range(2):
        for array in batches.make():
            array.sum()


# -- lists and window files --------------------------------------------------------------------------------------------


@cache
def drawn() -> dict[str, bytes]:
    import cv2

    rng = np.random.default_rng(5)
    return {
        name: cv2.imencode(".png", rng.integers(0, high, shape, np.uint8))[1].tobytes()
        for name, shape, high in (
            ("p.png", (*SIZE, 3), 256),
            ("q.png", (*SIZE, 3), 256),
            ("small.png", (4, 5, 3), 256),
            ("m.png", SIZE, 4),
            ("i.png", SIZE, 3),
        )
    }


def pictures_into(folder: Path) -> None:
    for name, data in drawn().items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()


NAMES = ("p.png", "q.png", "p.png", "m.png", "small.png", "folder", "no.png", "list", "a b.png", ".", "/", "/dev/null")


def number(rng: Random, usual: int) -> str:
    text = str(integer(rng, usual))
    return pick(
        rng, *[lambda: text] * 6, lambda: word(rng), lambda: f"{text}.5", lambda: f"+{text}", lambda: "9" * 5000
    )


def write_lines(rng: Random, path: Path, lines: list[list[str]]) -> Path:
    """Lines of words, some of them changed."""
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        line = rng.choice(lines)
        at = rng.randrange(len(line))
        way = rng.randrange(7)
        if way == 0:
            del line[at]
            line += ["x"] * (not line)
        elif way == 1:
            line.insert(at, number(rng, 3))
        elif way == 2:
            line[at] = word(rng)
        elif way == 3:
            lines.append([*line])
        elif way == 4:
            line[at] = rng.choice(NAMES)
        else:
            line[at] = number(rng, int(line[at]) if line[at].isdecimal() and len(line[at]) < 9 else 1)
    ends = rng.choice(("\n", "\n", "\r\n", "\n\n", " \n"))
    between = rng.choice((" ", " ", "\t", "  "))
    path.write_text(ends.join(between.join(line) for line in lines), encoding="utf-8", errors="surrogatepass")
    return path


def list_file(rng: Random, folder: Path) -> Path:
    """A list of any kind; its name says of which."""
    pictures_into(folder)
    kind, choice = (
        rng.choice(("labelled", "pairs", "listed", *(str(i) for i in range(len(BOX_KINDS))))),
        rng.randrange(3),
    )
    lines = []
    for name in ("p.png", "q.png", "p.png"):
        line = [name]
        if kind == "labelled" or (choice == 1 and kind not in ("pairs", "2")):
            line += [number(rng, 1)]
        else:
            line += ["m.png"]
        if kind == "2":
            line += ["i.png"]
        if kind.isdigit() and kind != "0":
            line += [number(rng, n) for n in (1, 2, 6, 7)] if rng.random() < 0.2 else ["1", "2", "6", "7"]
        if kind in "25":
            line += ["1"]
        lines.append(line)
    return write_lines(rng, folder / f"list.{kind}.{choice}", lines)


def read_list(path: Path) -> None:
    _, kind, choice = path.name.split(".")
    source, reader = str(path), PictureReader(Folder(path.parent), size=((0, 0), (6, 5), (0, 0))[int(choice)])
    crop, wide = (0, 0, 4)[int(choice)], (0, 12, 4)[int(choice)]
    if kind == "labelled":
        items = labelled(source)
        two_batches(PictureBatches(source, items, Cursor(len(items)), reader, transformer(crop), 2))
    elif kind == "pairs":
        both = pairs(source)
        labels = PictureReader(reader.places, color=False, size=reader.size)
        dense = DenseImages(
            source, both, Cursor(len(both)), (reader, labels), transformer(), 2, mirror=True, crop=(crop, crop)
        )
        for _ in range(2):
            dense.draws = list(range(dense.words))
            dense.make()
    elif kind == "listed":
        label_type = ("PIXEL", "IMAGE", "NONE")[int(choice)]
        scaled = ScaledTransformer(transformer(), (wide, wide), (1, 1.5, (0.3, 0.3, 0.01)[int(choice)]))
        scaled.seed(1)
        named = listed(source, label_type)
        two_batches(ScaledSegments(source, named, Cursor(len(named)), reader, scaled, 2, label_type, 255))
    else:
        made = BOX_KINDS[int(kind)]
        numbers = {segments.InstanceWindows: 1, segments.SelectedWindows: 1}.get(made, 0)
        masks = 1 + (made is segments.InstanceWindows)
        found = segments.segments(source, labels=masks, box=made is not segments.Pictures, numbers=numbers)
        settings = segments.Settings(
            *(source, found, Cursor(len(found), Stream(1)), reader, LabelMaps(reader, "fuzz"), transformer(wide), 2),
            *("IMAGE" if choice == "1" and masks == 1 else "PIXEL", 255, 20 if made is segments.ClassWindows else 1),
        )
        two_batches(made(settings))


def window_file(rng: Random, folder: Path) -> Path:
    pictures_into(folder)
    lines = []
    for i, name in enumerate(("p.png", "q.png", "p.png")):
        lines += [["#", str(i)], [name], ["3"], ["9"], ["8"], ["3"]]
        lines += [["2", "0.9", "1", "2", "6", "7"], ["1", "0.6", "0", "0", "7", "8"], ["0", "0.1", "2", "2", "3", "3"]]
    return write_lines(rng, folder / f"windows.{rng.randrange(4)}", lines)


def read_window_file(path: Path) -> None:
    choice = int(path.suffix[1:])
    file = box_file(str(path), 0.5, 0.3)
    sampling = Sampling(4, objects=2, pad=choice % 2, square=choice > 1, scale=0.5, cache=choice == 3)
    reader = PictureReader(Folder(path.parent))
    two_batches(BoxBatches(str(path), file, sampling, reader, transformer(6), Stream(1)))


# -- pictures and masks ------------------------------------------------------------------------------------------------


@cache
def encoded() -> dict[str, bytes]:
    """A picture in every form that OpenCV writes here, a progressive JPEG, an animated and several other PNGs."""
    import io

    import cv2
    from PIL import Image

    rng = np.random.default_rng(7)
    colour, grey = rng.integers(0, 256, (12, 16, 3), np.uint8), rng.integers(0, 256, (12, 16), np.uint8)
    made = {}
    for code in CODES:
        pixels: Any = grey if code == ".pgm" else colour / np.float32(255) if code in (".hdr", ".pfm") else colour
        try:
            good, data = cv2.imencode(code, pixels)
        except cv2.error:  # a form that this OpenCV has not
            continue
        if good:
            made[code] = data.tobytes()
    shown = Image.fromarray(colour)
    palette = Image.fromarray(grey % 21)
    palette.putpalette(bytes(range(63)))
    for name, picture, options in (
        ("progressive.jpg", shown, {"progressive": True}),
        ("exif.jpg", shown, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("palette.png", palette, {}),
        ("bits.png", palette, {"bits": 2}),
        ("alpha.png", shown.convert("RGBA"), {}),
        ("palette.gif", palette, {}),
        ("tiles.tiff", shown, {"compression": "tiff_deflate"}),
        ("palette.bmp", palette, {}),
    ):
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper()), **options)
        made[name] = file.getvalue()
    made["deep.png"] = cv2.imencode(".png", colour.astype(np.uint16) * 257)[1].tobytes()
    return made


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    whole = (pack(">I", len(body)) + kind + body + pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def change_png(rng: Random, data: bytes) -> bytes:
    """Chunks changed, left out, repeated or put in between, with the right sums."""
    chunks = png_chunks(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(chunks))
        kind, body = chunks[at]
        way = rng.randrange(6)
        if way <= 1 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
            head = bytearray(chunks[0][1])
            place = rng.choice((0, 4, 8, 9, 10, 11, 12))
            if place < 8:
                head[place : place + 4] = (integer(rng, 12) & 0xFFFFFFFF).to_bytes(4, "big")
            else:
                head[place] = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 16, 255))
            chunks[0] = (b"IHDR", bytes(head))
        elif way == 2 and len(chunks) > 1:
            del chunks[at]
        elif way == 3:
            chunks.insert(at, chunks[at])
        elif way == 4:
            text = rng.choice((b"zTXt", b"iCCP", b"tEXt", b"tRNS", b"acTL", b"fcTL", b"PLTE", b"eXIf", b"XXXX"))
            inside = rng.choice((b"", b"a\0\0" + zlib.compress(bytes(10**6)), b"a" * 99, bytes(range(26)), body))
            chunks.insert(at + 1, (text, inside))
        elif body:
            changed = bytearray(body)
            changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            chunks[at] = (kind, bytes(changed))
    return png_of(chunks)


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Numbers of 2 or 4 bytes in the head, or single bytes further in; the signature stays."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = len(changed) if rng.random() < 0.4 else min(len(changed), 120)
        at, length = rng.randrange(min(4, end - 1), end), rng.choice((1, 2, 2, 4))
        value = rng.choice((integer(rng), integer(rng, 12), rng.randrange(65536))) & (256**length - 1)
        changed[at : at + length] = value.to_bytes(length, rng.choice(("big", "little")))
    if rng.random() < 0.1:
        del changed[rng.randrange(4, len(changed)) :]
    return bytes(changed)


def change_jpeg(rng: Random, data: bytes) -> bytes:
    """A segment changed, repeated, left out or put in between."""
    at, parts = 2, []
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at : at + 2 + length])
        at += 2 + length
    rest, place = data[at:], rng.randrange(len(parts))
    way = rng.randrange(6)
    if way == 0:
        del parts[place]
    elif way == 1:
        parts.insert(place, parts[place])
    elif way == 2:
        parts.insert(
            place, rng.choice((b"\xff\xfe\0\x02" * 99, b"garbage", b"\xff" * 999, b"\xff\xfe\xff\xff", b"\xff\xd8"))
        )
    else:
        frame = next(i for i, part in enumerate(parts) if part[1] in (0xC0, 0xC2))
        head = bytearray(parts[frame])
        if way == 3:
            where = rng.choice((5, 7))
            head[where : where + 2] = (integer(rng, 16) & 0xFFFF).to_bytes(2, "big")
        else:
            head[rng.randrange(1, len(head))] = rng.choice((0, 1, 2, 3, 4, 8, 0x11, 0x44, 0xFF, 0xC1, 0xC9))
        parts[frame] = bytes(head)
    return b"\xff\xd8" + b"".join(parts) + rest


def picture_bytes(rng: Random, names: tuple[str, ...]) -> tuple[str, bytes]:
    name = rng.choice(names)
    data = encoded()[name]
    if name.endswith("png") and rng.random() < 0.8:
        return name, change_png(rng, data)
    if name.endswith("jpg") and rng.random() < 0.7:
        return name, change_jpeg(rng, data)
    return name, change_bytes(rng, data)


def picture_file(rng: Random, folder: Path) -> Path:
    name, data = picture_bytes(rng, tuple(encoded()))
    path = folder / f"x{rng.randrange(2)}.{name.rsplit('.')[-1]}"
    path.write_bytes(data)
    return path


def read_picture_file(path: Path) -> None:
    """By OpenCV as a file of a list and as a record, or by Pillow as the segmentation tools do."""
    if path.name[1] == "0":
        PictureReader(Folder(path.parent), size=(6, 5)).read(path.name, "list:1").sum()
        decode(path.read_bytes(), AS_IT_IS, "record 0").sum()
    else:
        read_picture(path).sum()


MASKS = ("palette.png", "palette.png", "bits.png", ".pgm", "palette.gif", "palette.bmp", "alpha.png", "deep.png")


def mask_file(rng: Random, folder: Path) -> Path:
    path = folder / f"x{rng.randrange(2)}.png"
    if rng.random() < 0.02:
        path.mkdir()
    else:
        path.write_bytes(picture_bytes(rng, MASKS)[1])
    return path


def read_mask_file(path: Path) -> None:
    if path.name[1] == "0":
        LabelMaps(PictureReader(Folder(path.parent)), "fuzz").read(path.name, "list:1").sum()
    else:
        read_labels(path).sum()


# -- HDF5 data ---------------------------------------------------------------------------------------------------------


def hdf5_data(rng: Random, folder: Path) -> Path:
    for name in ("a.h5", "b.h5"):
        with hdf5_file(rng, folder / name) as file:
            file["data"], file["label"] = np.ones((3, 4), "<f4"), np.arange(3)
            for _ in range(rng.choice((0, 1, 1, 2, 5))):
                change(rng, file, ("data", "label"))
    lines = [["a.h5"], ["b.h5"]]
    path = folder / f"list.{rng.randrange(2)}"
    if rng.random() < 0.1:
        return write_lines(rng, path, lines)
    path.write_text("a.h5\nb.h5\n")
    return path


def read_hdf5_data(path: Path) -> None:
    odd = path.suffix == ".1"
    rows = Rows(str(path), Folder(path.parent), ("data", "label"), CRand() if odd else None, four_axes=odd)
    for _ in range(3):
        for array in rows.make(3):
            array.sum()


# -- MATLAB files ------------------------------------------------------------------------------------------------------


def mat_element(rng: Random, kind: int, data: bytes) -> bytes:
    """An element of a MATLAB file, whose kind or size may be another."""
    if rng.random() < 0.1:
        kind = rng.choice((0, 1, 2, 5, 7, 9, 14, 15, 17, 65536 + kind, integer(rng) & 0xFFFFFFFF))
    size = len(data) if rng.random() < 0.9 else integer(rng, len(data)) & 0xFFFFFFFF
    return pack("<II", kind, size) + data + bytes(-len(data) % 8)


def mat_file(rng: Random, folder: Path) -> Path:
    shape = [rng.choice((1, 2, 3, integer(rng, 2))) if rng.random() < 0.1 else n for n in (4, 3, 2, 1)]
    dims = b"".join((n & 0xFFFFFFFF).to_bytes(4, "little") for n in shape[: rng.choice((*range(5), *[4] * 20))])
    flags = pack("<II", rng.choice((*[7] * 20, 6, 0x807, 1, integer(rng) & 0xFF)), 0)
    kind, numbers = rng.choice((*[(7, bytes(96))] * 9, (2, bytes(24)), (9, bytes(192)), (7, bytes(9))))
    name = rng.choice((*[b"data"] * 9, b"other", b""))
    body = b"".join(mat_element(rng, *part) for part in ((6, flags), (5, dims), (1, name), (kind, numbers)))
    whole = mat_element(rng, 14, body)
    if rng.random() < 0.5:
        packed = zlib.compress(whole if rng.random() < 0.9 else bytes(10**6))
        whole = pack("<II", 15, len(packed) if rng.random() < 0.9 else integer(rng) & 0xFFFFFFFF) + packed
    path = folder / "x.mat"
    path.write_bytes(bytes(124) + b"\0\1IM" + whole * rng.choice((1, 1, 2)))
    return path


register(
    Reader(
        "lists",
        read_list,
        list_file,
        ("data/files.py", "data/segments.py", "data/scaled_segments.py", "data/dense_images.py", "data/pictures.py"),
    ),
    Reader("window_files", read_window_file, window_file, ("data/boxes.py",)),
    Reader("pictures", read_picture_file, picture_file, ("data/picture_files.py",)),
    Reader("masks", read_mask_file, mask_file, ("data/picture_files.py",)),
    Reader("mat_files", lambda path: read_mat(str(path)).sum(), mat_file, ("data/mat_files.py",)),
    Reader("hdf5_data", read_hdf5_data, hdf5_data, ("data/hdf5_rows.py",)),
)
