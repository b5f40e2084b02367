"""The objects found in a picture, and their output: JSON, VOC's result files, drawn boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import FileError, FormatError
from caffe_port.paths import is_file

__all__ = ["Found", "drawn", "moved", "read_labels", "to_json", "voc_lines"]


@dataclass(frozen=True)
class Found:
    """An object: its class's number, its score (0 to 1), and its box in pixels of the picture."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax; 0 is the picture's left and upper edge."""


def read_labels(path: str | Path) -> dict[int, str]:
    """Names by label: from an SSD label map (``item { name: "x" label: 1 display_name: "X" }``), else one name a line,
    starting at label 1.

    Raises:
        FileError: it is missing. FormatError: a label map that cannot be read, or a file without names.
    """
    if not is_file(path):
        raise FileError(str(path), "no such file", expected="a label map, or a name a line")
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if "item" in text and "{" in text:
        from caffe_port.dialects import SSD
        from caffe_port.schema import parse_text, schema_of

        items = parse_text(text, schema_of(SSD).LabelMap, str(path)).item
        names = {item.label: item.display_name or item.name for item in items}
    else:
        names = dict(enumerate((line.strip() for line in text.splitlines() if line.strip()), 1))
    if not names:
        raise FormatError(str(path), "no names", expected="a label map, or a name a line")
    return names


def moved(found: Found, by: float) -> Found:
    """The object with ``by`` added to its coordinates."""
    x0, y0, x1, y1 = (edge + by for edge in found.box)
    return Found(found.label, found.score, (x0, y0, x1, y1))


def to_json(picture: str, objects: Iterable[Found], names: dict[int, str]) -> dict[str, Any]:
    """One picture's objects for JSON."""
    found = [
        {"class": names.get(o.label, str(o.label)), "label": o.label, "score": o.score, "box": list(o.box)}
        for o in objects
    ]
    return {"picture": picture, "objects": found}


def voc_lines(results: Sequence[tuple[str, Sequence[Found]]], label: int) -> str:
    """The lines ``PICTURE SCORE XMIN YMIN XMAX YMAX`` of a class, as VOC's development kit reads them."""
    lines = [
        f"{name} {o.score:.6f} " + " ".join(f"{edge:.2f}" for edge in o.box)
        for name, objects in results
        for o in objects
        if o.label == label
    ]
    return "".join(f"{line}\n" for line in lines)


def drawn(picture: np.ndarray, objects: Iterable[Found], names: dict[int, str], colours: np.ndarray) -> np.ndarray:
    """The picture (height, width, 3) with the objects' boxes, names and scores drawn over it.

    Args:
        colours: uint8 (n, 3), that of a label at its index.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    wide = max(2, round(max(picture.shape[:2]) / 300))
    for o in sorted(objects, key=lambda o: o.score):
        colour = tuple(int(c) for c in colours[o.label % len(colours)])
        x, y = o.box[:2]
        draw.rectangle((x, y, max(x, o.box[2]), max(y, o.box[3])), outline=colour, width=wide)
        text = f"{names.get(o.label, o.label)} {o.score:.2f}"
        left, top, right, bottom = draw.textbbox((x + wide, y + wide), text)
        draw.rectangle((left, top, right + 2, bottom + 2), fill=colour)
        draw.text((x + wide, y + wide), text, fill=(0, 0, 0) if sum(colour) > 380 else (255, 255, 255))
    return np.asarray(image)


def dump_json(results: Iterable[dict[str, Any]]) -> bytes:
    """Objects of many pictures, as one JSON list."""
    return (json.dumps(list(results), indent=1) + "\n").encode()
