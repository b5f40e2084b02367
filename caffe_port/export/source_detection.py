"""Layers of detection nets as functions which exported files contain: boxes around cells, pooling of regions, objects.

The rule of :mod:`caffe_port.export.source_helpers` holds here, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__: list[str] = []


# -- SSD ---------------------------------------------------------------------------------------------------------------


def prior_boxes(
    x: Tensor,
    image: Tensor,
    sizes: list[tuple[float, float]],
    variances: list[float],
    *,
    picture: tuple[int, int] | None = None,
    step: tuple[float, float] | None = None,
    offset: float = 0.5,
    clip: bool = False,
) -> Tensor:
    """(1, 2, n): boxes of sizes (width, height) around every cell of x, in parts of the picture; their variances."""
    rows, columns = (*x.shape, 1, 1)[2:4]
    height, width = picture or (*image.shape, 1, 1)[2:4]
    down, right = step or (height / rows, width / columns)
    y, x = (torch.arange(n, device=x.device) + offset for n in (rows, columns))
    across, along = torch.meshgrid(x * right, y * down, indexing="xy")
    centre = torch.stack((across, along), 2)[:, :, None]
    half = torch.tensor(sizes, device=centre.device) / 2
    boxes = torch.cat((centre - half, centre + half), 3) / torch.tensor((width, height) * 2, device=centre.device)
    boxes = boxes.flatten().clamp(0, 1) if clip else boxes.flatten()
    return torch.stack((boxes, torch.tensor(variances).to(boxes).repeat(len(boxes) // len(variances))))[None]


def overlaps(a: Tensor, b: Tensor, pixel: int = 0) -> Tensor:
    """(N, M): intersection by union of each of N boxes (xmin, ymin, xmax, ymax) with each of M; 0 where they are apart.

    With ``pixel`` 1 the far edges are the last pixels.
    """
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2]) + pixel
    common = sides.prod(2)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + pixel).clamp(min=0).prod(1) for box in (a, b))
    return (common / (area_a[:, None] + area_b - common)).masked_fill(~(sides > 0).all(2), 0)


def suppress(boxes: Tensor, threshold: float, eta: float = 1.0) -> list[int]:
    """Which boxes, best first, stay: those that overlap no better one that stays by more than the threshold.

    With eta below 1 the threshold is multiplied by it after each box that stays, while it is above 0.5.
    """
    kept = []
    most = boxes.new_zeros(len(boxes))  # the largest overlap with a box that stays
    for i in range(len(boxes)):
        if float(most[i]) <= threshold:
            kept.append(i)
            most = torch.maximum(most, overlaps(boxes[i : i + 1], boxes)[0])
            threshold *= eta if threshold > 0.5 else 1
    return kept


def decode_boxes(offsets: Tensor, prior: Tensor, code: str, *, scaled: bool) -> Tensor:
    """(N, priors, 1 or classes, 4): the boxes that offsets mean; ``scaled``: variances are in them already."""
    boxes, variances = prior.reshape(2, -1, 1, 4)
    offsets = offsets.reshape(len(offsets), len(boxes), -1, 4)
    offsets = offsets if scaled else offsets * variances
    if code == "CORNER":
        return boxes + offsets
    size = boxes[..., 2:] - boxes[..., :2]
    if code == "CORNER_SIZE":
        return boxes + offsets * torch.cat((size, size), -1)
    centre = offsets[..., :2] * size + (boxes[..., :2] + boxes[..., 2:]) / 2
    half = offsets[..., 2:].exp() * size / 2
    return torch.cat((centre - half, centre + half), -1)


def detect_objects(
    boxes: Tensor,
    scores: Tensor,
    *,
    background: int,
    above: float | None,
    overlap: float,
    top_k: int = -1,
    keep_top_k: int = -1,
    eta: float = 1.0,
) -> Tensor:
    """(1, 1, objects, 7): item, label, score, corners, by item, label and falling score (Caffe's DetectionOutput).

    Of each class the boxes with a score above ``above``, at most ``top_k``, thinned by overlap; of each item at most
    ``keep_top_k``. Without any object a row of -1 for each item. boxes: (N, priors, 1 or classes, 4).
    """
    scores = scores.reshape(*boxes.shape[:2], -1)
    rows = []
    for item in range(len(boxes)):
        found = []
        for label in range(scores.shape[2]):
            score = scores[item, :, label]
            index = score.argsort(descending=True, stable=True)
            index = index if above is None else index[score[index] > above]
            index = index[:top_k] if top_k >= 0 else index
            if label != background and len(index):
                places = boxes[item, index, 0 if boxes.shape[2] == 1 else label]
                kept = suppress(places, overlap, eta)
                names = places.new_tensor([[item, label]]).expand(len(kept), 2)
                found.append(torch.cat((names, score[index[kept], None], places[kept]), 1))
        if found:
            objects = torch.cat(found)
            best = objects[:, 2].argsort(descending=True, stable=True)[: keep_top_k if keep_top_k >= 0 else None]
            rows.append(objects[best.sort().values])
    if not rows:
        empty = scores.new_full((len(boxes), 7), -1)
        empty[:, 0] = torch.arange(len(boxes))
        rows.append(empty)
    return torch.cat(rows)[None, None]


# -- R-CNN -------------------------------------------------------------------------------------------------------------


def rounded(x: Tensor) -> Tensor:
    """x rounded to integers, halves away from zero, as C does."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def roi_max_pool(x: Tensor, rois: Tensor, bins: tuple[int, int], scale: float) -> Tensor:
    """The maximum of each of ``bins`` of every roi (item, x1, y1, x2, y2); 0 for a bin off the map (ROIPooling)."""
    rois = rois.flatten(1)
    corners = rounded(rois[:, 1:] * scale)
    edges = []
    for first, count, length in ((1, bins[0], x.shape[2]), (0, bins[1], x.shape[3])):
        start = corners[:, first, None]
        step = (corners[:, first + 2, None] - start + 1).clamp(min=1) / count
        at = torch.arange(count + 1, device=x.device)
        low, high = (at[:-1] * step).floor() + start, (at[1:] * step).ceil() + start
        edges.append((low.clamp(0, length).long().tolist(), high.clamp(0, length).long().tolist()))
    (tops, bottoms), (lefts, rights) = edges
    y = x.new_zeros(len(rois), x.shape[1], *bins)
    for n, item in enumerate(rois[:, 0].long().tolist()):
        for i in range(bins[0]):
            for j in range(bins[1]):
                part = x[item, :, tops[n][i] : bottoms[n][i], lefts[n][j] : rights[n][j]]
                if part.numel():
                    y[n, :, i, j] = part.amax((1, 2))
    return y


def position_sensitive_pool(x: Tensor, rois: Tensor, classes: int, side: int, scale: float) -> Tensor:
    """The mean of each bin of every roi, each class and bin from a channel of its own; 0 for an empty bin (R-FCN)."""
    rois = rois.flatten(1)
    corners = rounded(rois[:, 1:])
    corners = torch.cat((corners[:, :2], corners[:, 2:] + 1), 1) * scale
    edges = []
    for first, length in ((1, x.shape[2]), (0, x.shape[3])):
        start = corners[:, first, None]
        step = (corners[:, first + 2, None] - start).clamp(min=0.1) / side
        at = torch.arange(side + 1, device=x.device)
        low, high = (at[:-1] * step + start).floor(), (at[1:] * step + start).ceil()
        edges.append((low.clamp(0, length).long().tolist(), high.clamp(0, length).long().tolist()))
    (tops, bottoms), (lefts, rights) = edges
    x = x.unflatten(1, (classes, side, side))
    y = x.new_zeros(len(rois), classes, side, side)
    for n, item in enumerate(rois[:, 0].long().tolist()):
        for i in range(side):
            for j in range(side):
                part = x[item, :, i, j, tops[n][i] : bottoms[n][i], lefts[n][j] : rights[n][j]]
                if part.numel():
                    y[n, :, i, j] = part.mean((1, 2))
    return y


def falling(scores: Tensor) -> Tensor:
    """The indices of falling scores, of equal ones the last first."""
    return len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)


def propose_regions(
    scores: Tensor,
    deltas: Tensor,
    info: Tensor,
    anchors: list[tuple[float, ...]],
    *,
    stride: int,
    least: float,
    before: int,
    overlap: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """The best boxes of a region proposal network, (R, 5) of item 0 and corners in pixels, and their scores (R, 1).

    Boxes of ``least`` pixels a side and more, the ``before`` best, thinned by overlap to ``most`` (0: all of them).
    """
    count, (rows, columns) = len(anchors), scores.shape[2:]
    score = scores[0, count:].permute(1, 2, 0).flatten()
    moves = deltas[0].permute(1, 2, 0).reshape(-1, 4)
    x, y = torch.meshgrid(torch.arange(columns) * stride, torch.arange(rows) * stride, indexing="xy")
    boxes = torch.stack((x, y, x, y), 2).reshape(-1, 1, 4) + torch.tensor(anchors, dtype=torch.float64)
    boxes = boxes.reshape(-1, 4).to(scores)
    size = boxes[:, 2:] - boxes[:, :2] + 1
    centre, half = moves[:, :2] * size + (boxes[:, :2] + 0.5 * size), 0.5 * (moves[:, 2:].exp() * size)
    height, width, scale = info.flatten().tolist()
    last = scores.new_tensor((width - 1, height - 1) * 2)
    boxes = torch.cat((centre - half, centre + half), 1).minimum(last).clamp(min=0)
    large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= least * scale).all(1).nonzero().flatten()
    best = large[falling(score[large])]
    best = best[:before] if before > 0 else best
    best = best[falling(score[best])]
    kept: list[int] = []
    largest_overlap = boxes.new_zeros(len(best))
    for i in range(len(best)):
        if most and len(kept) == most:
            break
        if float(largest_overlap[i]) < overlap:
            kept.append(i)
            largest_overlap = torch.maximum(largest_overlap, overlaps(boxes[best[i : i + 1]], boxes[best], pixel=1)[0])
    best = best[kept]
    return torch.cat((boxes.new_zeros(len(best), 1), boxes[best]), 1), score[best, None]
