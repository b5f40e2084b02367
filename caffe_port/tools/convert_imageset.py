"""convert_imageset: pictures and their labels as a database of Datum records.

Source: tools/convert_imageset.cpp, util/io.cpp.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from caffe_port.data.database_writer import BACKENDS, DatabaseWriter
from caffe_port.data.files import whole
from caffe_port.data.picture_files import COLOR, GRAY, load_picture
from caffe_port.errors import CaffeError, FileError, FormatError
from caffe_port.schema.messages import SCHEMA
from caffe_port.tools.cli import FOLDER, Parser, as_gflags, run
from caffe_port.tools.progress import each

__all__ = ["main"]

_SWITCHES = ("gray", "shuffle", "check-size", "encoded")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "convert-imageset",
        "Write pictures and their labels into an LMDB or LevelDB database, record for record as Caffe's tool does."
        " LIST has one line for each: a name relative to ROOT, a blank, a label.",
        example="VOC2012/JPEGImages/ list.txt resized_lmdb --resize-height 32 --resize-width 32",
    )
    add = parser.add_argument
    add("root", metavar="ROOT/", help="prefix of every name")
    add("list", metavar="LIST", help="names and labels")
    add("database", metavar="DATABASE", help="the folder to create")
    add("--gray", action="store_true", help="read pictures as grey")
    add("--shuffle", action="store_true", help="shuffle the list first, as Caffe's generator does")
    add("--seed", type=int, metavar="N", help="of the shuffling; default: a new one each time")
    add("--backend", choices=BACKENDS, default="lmdb", help="default: %(default)s")
    add(
        "--resize-width", type=int, default=0, metavar="N", help="with --resize-height: the size of the stored pictures"
    )
    add("--resize-height", type=int, default=0, metavar="N", help="with --resize-width")
    add("--check-size", action="store_true", help="refuse pictures of another size than the first")
    add("--encoded", action="store_true", help="store encoded pictures; the file's bytes where nothing changes them")
    add("--encode-type", default="", metavar="EXT", help="png, jpg ...; default: as the file's name")
    parser.add_quiet()
    parser.reads("root", kind=FOLDER, part=_folder)
    parser.reads("list")
    parser.writes("database", kind=FOLDER)
    run(_convert, parser, as_gflags(argv, _SWITCHES))


def _folder(root: str) -> str:
    """The folder of ROOT, which is joined with names as it is: its last part may begin them."""
    return os.path.dirname(root) or "."  # noqa: PTH120


def _convert(arguments: argparse.Namespace) -> None:
    from caffe_port.random import default_stream, set_random_seed

    items = list(enumerate(_items(arguments.list)))
    with DatabaseWriter(arguments.database, arguments.backend) as database:
        if arguments.shuffle:
            if arguments.seed is not None:
                set_random_seed(arguments.seed)
            shuffled = [item for _, item in items]
            default_stream().shuffle(shuffled)
            items = list(enumerate(shuffled))
        first: int | None = None
        skipped = 0
        for number, (name, label) in each(items, "convert-imageset", quiet=arguments.quiet):
            datum = _datum(arguments, name, label)
            if datum is None:
                print(
                    f"caffe-port convert-imageset: warning: {arguments.root}{name}: not read; skipped", file=sys.stderr
                )
                skipped += 1
                continue
            if arguments.check_size:
                first = datum.channels * datum.height * datum.width if first is None else first
                if len(datum.data) != first and database.count:
                    raise FormatError(f"{arguments.root}{name}", f"{len(datum.data)} bytes", expected=f"{first}")
            database.put(f"{number:08d}_{name}", datum.SerializeToString())
        if not database.count:
            raise FileError(
                arguments.list, "no picture that can be read", remedy="ROOT and names are joined without a slash"
            )
    if not arguments.quiet:
        print(f"{len(items) - skipped} pictures in {arguments.database}" + (f", {skipped} skipped" if skipped else ""))


def _items(path: str) -> list[tuple[str, int]]:
    """The names and labels of a list.

    Raises:
        FileError: it cannot be read. FormatError: a line without a label.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        name, _, label = line.rstrip().rpartition(" ")
        value = whole(label)
        if not name or value is None:
            raise FormatError(f"{path}:{number}", repr(line), expected="NAME LABEL, a number of 32 bits")
        items.append((name, value))
    if not items:
        raise FormatError(path, "an empty list", expected="a line for each picture")
    return items


def _datum(arguments: argparse.Namespace, name: str, label: int) -> Any:
    """The record of a picture; None if it cannot be read."""
    import cv2

    path = arguments.root + name
    try:
        picture = load_picture(path, GRAY if arguments.gray else COLOR, arguments.list)
    except CaffeError:
        return None
    size = arguments.resize_width, arguments.resize_height
    if min(size) > 0:
        picture = cv2.resize(picture, size)
    datum = SCHEMA.Datum()
    kind = arguments.encode_type or (Path(name).suffix[1:].lower() if arguments.encoded else "")
    if arguments.encoded and not kind:
        raise CaffeError(
            path, "a name without an extension", expected="one that gives the encoding", remedy="pass --encode-type"
        )
    if kind:
        suffix = Path(name).suffix[1:].lower()
        same = max(size) <= 0 and (suffix == kind.lower() or (kind.lower(), suffix) == ("jpg", "jpeg"))
        datum.data = Path(path).read_bytes() if same else _encoded(picture, kind, path)
        datum.label, datum.encoded = label, True
        return datum
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    datum.channels, datum.height, datum.width = planes.shape
    datum.data, datum.label, datum.encoded = planes.tobytes(), label, False
    return datum


def _encoded(picture: Any, kind: str, path: str) -> bytes:
    import cv2

    try:
        done, data = cv2.imencode(f".{kind}", picture)
    except cv2.error:
        done = False
    if not done:
        raise CaffeError(path, f"encoding {kind!r}", expected="one that OpenCV writes, such as png or jpg")
    return bytes(data.tobytes())


if __name__ == "__main__":
    main()
