"""Arithmetic of boxes (xmin, ymin, xmax, ymax): coding against priors, overlap, suppression.

Source: bbox_util.cpp (ssd). Boxes are tensors (..., 4). Operations are rounded in the order of the original, so that
comparisons fall the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["areas", "decode", "encode", "inside", "overlaps", "suppress"]


def areas(boxes: Tensor) -> Tensor:
    """Width times height; 0 for a box whose far edge lies before its near one."""
    width, height = (boxes[..., 2] - boxes[..., 0]), (boxes[..., 3] - boxes[..., 1])
    return (width * height).masked_fill_((width < 0) | (height < 0), 0)


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection by union of each box of ``a`` (..., N, 4) with each of ``b`` (..., M, 4): (..., N, M). 0 where they
    only touch."""
    ax, ay, a_right, a_low = a[..., :, None, :].unbind(-1)
    bx, by, b_right, b_low = b[..., None, :, :].unbind(-1)
    width = torch.minimum(a_right, b_right).sub_(torch.maximum(ax, bx))
    height = torch.minimum(a_low, b_low).sub_(torch.maximum(ay, by))
    apart = ~(torch.minimum(width, height) > 0)  # nan is apart
    common = width.mul_(height)
    union = (areas(a)[..., :, None] + areas(b)[..., None, :]).sub_(common)
    return common.div_(union).masked_fill_(apart, 0)


def inside(boxes: Tensor) -> Tensor:
    """For each coordinate whether it lies in [0, 1]."""
    return (boxes >= 0) & (boxes <= 1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, (..., 2) each."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def decode(code: str, priors: Tensor, variances: Tensor | None, offsets: Tensor) -> Tensor:
    """The boxes that predicted ``offsets`` (..., 4) mean.

    Args:
        code: CORNER, CENTER_SIZE or CORNER_SIZE.
        priors, variances: what broadcasts with the offsets; None: the variances are in the targets already.
    """
    if code == "CORNER":
        return priors + (offsets if variances is None else variances * offsets)
    centre, size = _centres(priors)
    if code == "CORNER_SIZE":
        scaled = offsets if variances is None else variances * offsets
        return priors + scaled * torch.cat((size, size), -1)
    scaled = offsets if variances is None else variances * offsets
    centre, size = scaled[..., :2] * size + centre, scaled[..., 2:].exp() * size
    half = size / 2
    return torch.cat((centre - half, centre + half), -1)


def encode(code: str, priors: Tensor, variances: Tensor | None, boxes: Tensor) -> Tensor:
    """The offsets that mean ``boxes``: the inverse of :func:`decode`."""
    if code == "CORNER":
        offsets = boxes - priors
    else:
        centre, size = _centres(priors)
        if code == "CORNER_SIZE":
            offsets = (boxes - priors) / torch.cat((size, size), -1)
        else:
            of_box, its_size = _centres(boxes)
            offsets = torch.cat(((of_box - centre) / size, (its_size / size).log()), -1)
    return offsets if variances is None else offsets / variances


_BLOCK = 128
"""Boxes of a group that are compared with one another at a time."""


def suppress(groups: Sequence[Tensor], threshold: float, eta: float = 1.0) -> list[Tensor]:
    """Which boxes of each group (N, 4), best first, stay: those that overlap no earlier one that stays by more than
    allowed.

    Args:
        threshold: the overlap allowed. eta: below 1, what the threshold is multiplied with after each box that stays,
            as long as it is above 0.5.

    Returns:
        For each group their indices, rising.
    """
    if eta < 1 and threshold > 0.5:
        return [_suppress_one_by_one(boxes, threshold, eta) for boxes in groups]
    counts = [len(boxes) for boxes in groups]
    if not any(counts):
        return [torch.zeros(0, dtype=torch.int64, device=boxes.device) for boxes in groups]
    padded = nn.utils.rnn.pad_sequence([*groups], batch_first=True)  # a box of no size hits none, and is dropped
    places = torch.arange(padded.shape[1], device=padded.device)
    stays = places < torch.tensor(counts, device=padded.device)[:, None]
    for start in range(0, padded.shape[1], _BLOCK):
        rows = [i for i, count in enumerate(counts) if count > start]
        here, alive = padded[rows, start : start + _BLOCK], stays[rows, start : start + _BLOCK]
        if start:
            earlier = stays[rows, :start]
            most = int(earlier.sum(1).max())
            order = earlier.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
            kept = padded[rows].gather(1, order[..., None].expand(-1, -1, 4))
            clear = (overlaps(kept, here) <= threshold) | ~earlier.gather(1, order)[..., None]
            alive = alive & clear.all(1)
        hits = (~(overlaps(here, here) <= threshold)).to(padded.dtype).triu_(1)  # nan is a hit
        now = alive
        while True:  # each turn settles at least the next box, and most all of them
            after = alive & (now.to(padded.dtype)[:, None] @ hits == 0)[:, 0]
            if torch.equal(after, now):
                break
            now = after
        stays[rows, start : start + _BLOCK] = now
    return [row[:count].nonzero().flatten() for row, count in zip(stays, counts, strict=True)]


def _suppress_one_by_one(boxes: Tensor, threshold: float, eta: float) -> Tensor:
    single = np.float32
    limit, kept = single(threshold), list[int]()
    for i in range(len(boxes)):
        if not kept or bool((overlaps(boxes[kept], boxes[i : i + 1]) <= float(limit)).all()):
            kept.append(i)
            if limit > 0.5:
                limit = single(limit * single(eta))
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)
