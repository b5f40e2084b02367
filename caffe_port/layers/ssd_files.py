"""Files of DetectionOutput's save_output_param: VOC, COCO, ILSVRC. Source: detection_output_layer.cpp (ssd)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.dialects import SSD
from caffe_port.errors import FileError
from caffe_port.formats.atomic import atomic_write
from caffe_port.layers.ssd_pixels import Resized, read_sizes
from caffe_port.paths import is_file
from caffe_port.schema import parse_text, schema_of

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.spec.fields import Fields

__all__ = ["OutputFiles", "read_label_map"]

FORMATS = ("VOC", "COCO", "ILSVRC")
_BARE = re.compile(r'"(null|true|false|-?[0-9]+(\.[0-9]+)?)"')
"""Words whose quotes the original removes, wherever they occur."""

Row = tuple[str, int, str, np.float32, list[np.float32]]
"""Picture, label, the label's name, score, and box: xmin, ymin, width, height."""


def read_label_map(path: str) -> dict[int, str]:
    """Names by label of an SSD label map.

    Raises:
        FileError: it is missing. DefinitionError: it is not a label map. FormatError: a label occurs twice.
    """
    if not is_file(path):
        raise FileError(path, "no such file", expected="a label map")
    items = parse_text(Path(path).read_text(encoding="utf-8", errors="replace"), schema_of(SSD).LabelMap, path).item
    names = {item.label: item.name for item in items}
    if len(names) < len(items):
        raise FileError(path, "a label that occurs twice", expected="each once")
    return names


class OutputFiles:
    """Collects objects, and writes them whenever those of ``num_test_image`` pictures are complete.

    Args:
        layer: the DetectionOutput. p: its save_output_param.
    """

    def __init__(self, layer: Layer, p: Fields) -> None:
        self.layer, self.folder, self.prefix = layer, p.output_directory, p.output_name_prefix
        self.format, sizes = p.output_format, p.name_size_file
        self.resized = Resized(layer, p.resize_param if p.has("resize_param") else None)
        self.names = read_label_map(p.label_map_file)
        self.pictures = read_sizes(sizes)
        self.count = p.num_test_image if p.has("num_test_image") else len(self.pictures)
        if not 1 <= self.count <= len(self.pictures):
            found = f"num_test_image {self.count} with {len(self.pictures)} pictures in {sizes}"
            raise layer.error(found, expected="1 to as many as there are")
        self.rows: list[Row] = []
        self.done = 0
        Path(self.folder).mkdir(parents=True, exist_ok=True)

    def classes(self) -> list[str]:
        """The names of classes other than the background, by label."""
        background, classes = self.layer.background, self.layer.classes
        return [self.names.get(c, "") for c in range(classes) if c != background]

    def start(self) -> None:
        """Before a pass: empty VOC's files when a round begins, as the original does."""
        if self.done == 0 and self.format == "VOC":
            for label, name in self.names.items():
                if label != self.layer.background:
                    self._write(f"{self.prefix}{name}.txt", "")

    def add(self, labels: Sequence[int], scores: np.ndarray, boxes: np.ndarray) -> None:
        """One picture's objects, boxes (n, 4) in parts of the net's input.

        Raises:
            LayerError: a label that the map lacks.
        """
        missing = [label for label in labels if label not in self.names]
        if missing:
            raise self.layer.error(f"an object of label {missing[0]}", expected="a label of label_map_file")
        name, *size = self.pictures[self.done]
        pixels, _ = self.resized.boxes(boxes, *size)
        pixels[:, 2:] -= pixels[:, :2]
        rounded = (_half_away(pixels * np.float32(100)).astype(np.float64) / 100).astype(np.float32)
        for label, score, box in zip(labels, scores, rounded, strict=True):
            self.rows.append((name, label, self.names[label], score, list(box)))
        self.done += 1
        if self.done == self.count:
            self._finish()
            self.done, self.rows = 0, []

    def _finish(self) -> None:
        if self.format == "VOC":
            for name in self.classes():
                lines = (f"{row[0]} {_whole(row)}" for row in self.rows if row[2] == name)
                self._write(f"{self.prefix}{name}.txt", "".join(f"{line}\n" for line in lines))
        elif self.format == "ILSVRC":
            lines = (f"{row[0]} {row[1]} {_whole(row)}\n" for row in self.rows)
            self._write(f"{self.prefix}.txt", "".join(lines))
        elif self.format == "COCO":
            self._write(f"{self.prefix}.json", _coco(self.rows))

    def _write(self, name: str, text: str) -> None:
        with atomic_write(Path(self.folder) / name, overwrite=True) as file:
            file.write(text.encode("utf-8", "surrogateescape"))


def _half_away(x: np.ndarray) -> np.ndarray:
    """Rounded to whole numbers, halves away from zero."""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0)


def _whole(row: Row) -> str:
    """Score and corners, cut to whole pixels side by side."""
    x, y, width, height = (int(edge) for edge in row[4])
    return f"{_number(row[3], 6)} {x} {y} {x + width} {y + height}"


def _number(x: np.float32, digits: int) -> str:
    """As C++ streams print a float."""
    return f"{float(x):.{digits}g}"


_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "/": "\\/", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _coco(rows: Sequence[Row]) -> str:
    """The list as boost's property tree prints it; numbers have no quotes, nor has any name that looks like one."""
    items = []
    for picture, _, name, score, box in rows:
        edges = ",\n".join(f'                "{_number(edge, 9)}"' for edge in box)
        lines = (
            f'"image_id": "{picture.translate(_ESCAPES)}",',
            f'"category_id": "{name.translate(_ESCAPES)}",',
            f'"bbox": [\n{edges}\n            ],',
            f'"score": "{_number(score, 9)}"',
        )
        items.append("        {\n" + "".join(f"            {line}\n" for line in lines) + "        }")
    text = "[\n" + ",\n".join(items) + "\n    " if items else "["
    return _BARE.sub(r"\1", text) + "\n]\n"
