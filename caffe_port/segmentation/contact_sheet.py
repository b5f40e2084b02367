"""Pictures beside their true masks and the results of one or more systems, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from caffe_port.formats.atomic import atomic_write
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.voc import palette, read_labels

__all__ = ["contact_sheet"]

_GAP, _MARGIN = 6, 132
"""Pixels between cells, and for the names of the rows."""


def contact_sheet(
    folder: Folder, names: Sequence[str], results: Mapping[str, Path], output: Path, *, side: int, scale: int = 2
) -> None:
    """Writes a PNG with a column for each picture: it, its true mask, and its mask of each of the results.

    Args:
        results: folders of masks by the name of their row; rows have names where there are several results.
        side: of the largest picture, in pixels; ``scale``: pixels of the page for each of them.
    """
    from PIL import Image, ImageDraw

    colours, cell = palette(), scale * side + _GAP
    left = _MARGIN if len(results) > 1 else _GAP
    rows = ["picture", "truth", *results]
    page = Image.new("RGB", (left + len(names) * cell, len(rows) * cell + _GAP), "white")
    if len(results) > 1:
        draw = ImageDraw.Draw(page)
        for row, title in enumerate(rows):
            draw.text((_GAP, _GAP + row * cell), title, "black")
    for column, name in enumerate(names):
        masks = [
            colours[read_labels(path)] for path in (folder.mask(name), *(r / f"{name}.png" for r in results.values()))
        ]
        for row, pixels in enumerate((folder.picture(name), *masks)):
            picture = Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
            picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
            page.paste(picture, (left + column * cell, _GAP + row * cell))
    with atomic_write(output, overwrite=True) as file:
        page.save(file, "PNG")
