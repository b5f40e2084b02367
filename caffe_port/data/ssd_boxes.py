"""Boxes of objects as SSD's data layer moves them: through expansion, crop, resize and mirroring.

Everything is single precision and in the original's order of operations. A box that was cut to a crop keeps the area
that it had then; later changes of its corners leave it, and overlaps are measured with it, as in the original.

Source: util/bbox_util.cpp, util/im_transforms.cpp, data_transformer.cpp (TransformAnnotation) of weiliu89/caffe, ssd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from caffe_port.errors import ShapeError

__all__ = ["UNIT", "Box", "Group", "area", "coverage", "emits", "extrapolated", "intersection", "mirrored", "moved"]
__all__ += ["projected", "resized"]

F = np.float32
ZERO, ONE, TWO = F(0), F(1), F(2)


class Box(NamedTuple):
    """Corners in parts of the picture, np.float32; ``size`` is the area recorded with the box, or None."""

    xmin: Any
    ymin: Any
    xmax: Any
    ymax: Any
    difficult: bool = False
    size: Any = None


class Group(NamedTuple):
    """Boxes of one label: each an instance's number with its box."""

    label: int
    items: list[tuple[int, Box]]


UNIT = Box(ZERO, ZERO, ONE, ONE)


def area(box: Box) -> Any:
    """The area (BBoxSize); 0 for a box whose corners are the wrong way round."""
    if box.xmax < box.xmin or box.ymax < box.ymin:
        return ZERO
    return (box.xmax - box.xmin) * (box.ymax - box.ymin) if box.size is None else box.size


def clipped(box: Box) -> Box:
    """Cut to the picture."""
    x0, y0, x1, y1 = (max(min(v, ONE), ZERO) for v in box[:4])
    cut = Box(x0, y0, x1, y1, box.difficult)
    return cut._replace(size=area(cut))


def projected(source: Box, box: Box) -> Box | None:
    """A box in parts of ``source``, cut to it; None if nothing is left."""
    if box.xmin >= source.xmax or box.xmax <= source.xmin or box.ymin >= source.ymax or box.ymax <= source.ymin:
        return None
    width, height = source.xmax - source.xmin, source.ymax - source.ymin
    x, y = source.xmin, source.ymin
    inside = ((box.xmin - x) / width, (box.ymin - y) / height, (box.xmax - x) / width, (box.ymax - y) / height)
    cut = clipped(Box(*inside, box.difficult))
    return cut if area(cut) > 0 else None


def intersection(a: Box, b: Box) -> Box:
    """What two boxes share, all 0 if nothing."""
    if b.xmin > a.xmax or b.xmax < a.xmin or b.ymin > a.ymax or b.ymax < a.ymin:
        return Box(ZERO, ZERO, ZERO, ZERO)
    return Box(max(a.xmin, b.xmin), max(a.ymin, b.ymin), min(a.xmax, b.xmax), min(a.ymax, b.ymax))


def coverage(box: Box, by: Box) -> Any:
    """The part of ``box`` that ``by`` covers."""
    shared = area(intersection(box, by))
    return shared / area(box) if shared > 0 else ZERO


def emits(constraint: Any, source: Box, box: Box) -> bool:
    """Whether a box stays after a crop to ``source``, by an ``emit_constraint`` message."""
    if constraint.emit_type == constraint.MIN_OVERLAP:
        return bool(coverage(box, source) > F(constraint.emit_overlap))
    x, y = (box.xmin + box.xmax) / TWO, (box.ymin + box.ymax) / TWO
    return bool(source.xmin <= x <= source.xmax and source.ymin <= y <= source.ymax)


def resized(p: Any, width: int, height: int, box: Box) -> Box:
    """A box after its picture of this size is resized by a ``resize_param`` message (UpdateBBoxByResizePolicy)."""
    old_width, old_height, new_width, new_height = F(width), F(height), F(p.width), F(p.height)
    aspect, new_aspect = old_width / old_height, new_width / new_height
    x0, y0, x1, y1 = box.xmin * old_width, box.ymin * old_height, box.xmax * old_width, box.ymax * old_height
    pad_x = pad_y = None
    if p.resize_mode == p.FIT_SMALL_SIZE:
        if aspect < new_aspect:
            new_height = new_width / aspect
        else:
            new_width = aspect * new_height
    elif p.resize_mode == p.FIT_LARGE_SIZE_AND_PAD and aspect > new_aspect:
        pad_y = (new_height - new_width / aspect) / TWO
    elif p.resize_mode == p.FIT_LARGE_SIZE_AND_PAD:
        pad_x = (new_width - aspect * new_height) / TWO
    x0, x1 = _stretched(x0, x1, new_width, old_width, pad_x)
    y0, y1 = _stretched(y0, y1, new_height, old_height, pad_y)
    return box._replace(xmin=x0 / new_width, ymin=y0 / new_height, xmax=x1 / new_width, ymax=y1 / new_height)


def _stretched(low: Any, high: Any, new: Any, old: Any, pad: Any) -> tuple[Any, Any]:
    if pad is None:
        return max(ZERO, low * new / old), min(new, high * new / old)
    inner = new - TWO * pad
    return pad + max(ZERO, low * inner / old), pad + min(new, high * inner / old)


def extrapolated(p: Any, width: int, height: int, crop: Box, box: Box, where: str) -> Box:
    """A box in parts of ``height_scale`` and ``width_scale`` pixels, where FIT_SMALL_SIZE has them.

    Raises:
        ShapeError: the crop is smaller than these.
    """
    if not (p.height_scale > 0 and p.width_scale > 0 and p.resize_mode == p.FIT_SMALL_SIZE):
        return box
    aspect, new_height, new_width = F(width) / F(height), F(p.height), F(p.width)
    if aspect < new_width / new_height:
        new_height = new_width / aspect
    else:
        new_width = new_height * aspect
    crop_height, crop_width = new_height * (crop.ymax - crop.ymin), new_width * (crop.xmax - crop.xmin)
    across, down = F(p.width_scale), F(p.height_scale)
    if crop_width < across or crop_height < down:
        raise ShapeError(
            where,
            f"a resized and cropped picture of {crop_width:g} x {crop_height:g} pixels",
            expected=f"at least width_scale x height_scale, {p.width_scale} x {p.height_scale}",
        )
    x0, y0, x1, y1, *rest = box
    return Box(
        x0 * crop_width / across, y0 * crop_height / down, x1 * crop_width / across, y1 * crop_height / down, *rest
    )


def mirrored(box: Box) -> Box:
    """Flipped left to right."""
    return box._replace(xmin=ONE - box.xmax, xmax=ONE - box.xmin)


def moved(groups: Sequence[Group], change: Callable[[Box], Box | None]) -> list[Group]:
    """Groups of what becomes of their boxes; without boxes of which nothing is left, and without empty groups."""
    made = []
    with np.errstate(all="ignore"):  # the original divides by whatever a file holds
        for group in groups:
            changed = [(number, change(box)) for number, box in group.items]
            items = [(number, box) for number, box in changed if box is not None]
            if items:
                made.append(Group(group.label, items))
    return made
