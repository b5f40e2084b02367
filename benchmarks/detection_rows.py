"""Rows of benchmarks/layers.py for the layers of SSD, at the sizes of its 300 x 300 net."""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layer_rows import Row, Shape, normal, positive

MAP, IMAGE, PRIORS, CLASSES, ITEMS, BOXES = (1, 512, 38, 38), (1, 3, 300, 300), 8732, 21, 8, 40
VARIANCES = torch.tensor([0.1, 0.1, 0.2, 0.2])


def normalized(x: Tensor, scale: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * scale


def smooth(x: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(x, y, reduction="sum") / len(x)


def prior_boxes(x: Tensor, image: Tensor) -> Tensor:
    """Around every cell a square of 30 pixels, one of sqrt(30 * 60), and boxes of 2 to 1 and 1 to 2."""
    height, width = image.shape[2:]
    y, x = (torch.arange(n) + 0.5 for n in x.shape[2:])
    y, x = y * (height / len(y)), x * (width / len(x))
    sizes = torch.tensor([(30, 30), (sqrt(1800),) * 2, (30 * sqrt(2), 30 / sqrt(2)), (30 / sqrt(2), 30 * sqrt(2))])
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)[:, :, None]
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), 3) / torch.tensor([width, height, width, height])
    return torch.stack((boxes.flatten(), torch.full((boxes.numel(),), 0.1)))[None]


def probabilities(shape: Shape) -> Tensor:
    return torch.softmax(3 * torch.randn(shape[0], PRIORS, CLASSES), 2).flatten(1)


def some_priors(shape: Shape) -> Tensor:
    centres, sizes = torch.rand(PRIORS, 2), 0.05 + 0.4 * torch.rand(PRIORS, 2)
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), 1)
    return torch.stack((boxes.flatten(), VARIANCES.repeat(PRIORS)))[None]


def true_boxes(shape: Shape) -> Tensor:
    centres, sizes = 0.2 + 0.6 * torch.rand(BOXES, 2), 0.1 + 0.3 * torch.rand(BOXES, 2)
    columns = (torch.arange(BOXES) % ITEMS, torch.randint(1, CLASSES, (BOXES,)), torch.zeros(BOXES))
    rows = torch.cat((torch.stack(columns, 1), centres - sizes / 2, centres + sizes / 2, torch.zeros(BOXES, 1)), 1)
    return rows[rows[:, 0].sort(stable=True).indices][None, None]


def areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    common = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0).prod(2)
    return common / (areas(a)[:, None] + areas(b) - common)


def objects(loc: Tensor, conf: Tensor, prior: Tensor) -> Tensor:
    """For each class the boxes above 0.01, at most 400, with sequential suppression; of all at most 200."""
    priors, variances = prior.view(2, -1, 4)
    centre, size = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    scaled = loc.view(-1, 4) * variances
    centre, half = centre + scaled[:, :2] * size, scaled[:, 2:].exp() * size / 2
    boxes, rows = torch.cat((centre - half, centre + half), 1), []
    for c in range(1, CLASSES):
        score = conf.view(-1, CLASSES)[:, c]
        (index,) = (score > 0.01).nonzero(as_tuple=True)
        order = score[index].sort(descending=True, stable=True).indices[:400]
        here, kept = boxes[index[order]], []
        hits = overlaps(here, here) > 0.45
        for i in range(len(here)):
            if not kept or not hits[i, kept].any():
                kept.append(i)
        label = torch.full((len(kept), 1), float(c))
        rows.append(torch.cat((0 * label, label, score[index[order]][kept, None], here[kept]), 1))
    found = torch.cat(rows)
    best = found[:, 2].sort(descending=True, stable=True).indices[:200]
    return found[best[found[best, 1].sort(stable=True).indices]][None, None]


def multibox(loc: Tensor, conf: Tensor, prior: Tensor, truth: Tensor) -> Tensor:
    """Matching, hard negatives, and the two losses, as written directly in PyTorch."""
    (priors, variances), loss, matches = prior.view(2, -1, 4), loc.new_zeros(()), 0
    centre, size = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    for i in range(len(loc)):
        rows = truth.view(-1, 8)[truth.view(-1, 8)[:, 0] == i]
        boxes, scores = rows[:, 3:7], conf[i].view(-1, CLASSES)
        table = overlaps(priors, boxes)
        best, box = table.max(1)
        left = table.clone()
        for _ in range(len(boxes)):
            own, of = divmod(int(left.argmax()), len(boxes))
            best[own], box[own] = 2, of
            left[own], left[:, of] = -1, -1
        own = best >= 0.5
        target = torch.where(own, rows[box, 1].long(), 0)
        every = F.cross_entropy(scores, target, reduction="none")
        rank = every.detach().masked_fill(own, -1).sort(descending=True).indices
        negative = torch.zeros_like(own)
        negative[rank[: 3 * int(own.sum())]] = True
        mine, at = boxes[box[own]], own.nonzero()[:, 0]
        offset = ((mine[:, :2] + mine[:, 2:]) / 2 - centre[at]) / size[at]
        offset = torch.cat((offset, ((mine[:, 2:] - mine[:, :2]) / size[at]).log()), 1) / variances[at]
        loss = loss + F.smooth_l1_loss(loc[i].view(-1, 4)[at], offset, reduction="sum") + every[own | negative].sum()
        matches += len(at)
    return loss / matches


OUTPUT = "num_classes: 21 code_type: CENTER_SIZE keep_top_k: 200 confidence_threshold: 0.01"
OFFSETS, SCORES, BOTH = 4 * PRIORS, CLASSES * PRIORS, (1, 2, 4 * PRIORS)


def found_boxes(shape: Shape) -> Tensor:
    """(1, 1, n, 7) detections: item, label, score, box."""
    columns = torch.arange(shape[2]) % ITEMS, torch.randint(1, CLASSES, (shape[2],)), torch.rand(shape[2])
    centres, sizes = 0.2 + 0.6 * torch.rand(shape[2], 2), 0.1 + 0.3 * torch.rand(shape[2], 2)
    return torch.cat((torch.stack(columns, 1), centres - sizes / 2, centres + sizes / 2), 1)[None, None]


ROWS = [
    Row(
        "DetectionEvaluate",
        ((1, 1, 200 * ITEMS, 7), (1, 1, BOXES, 8)),
        None,
        "detection_evaluate_param { num_classes: 21 background_label_id: 0 overlap_threshold: 0.5 }",
        (found_boxes, true_boxes),
        dialect="ssd",
        backward=False,
        note="matching",
    ),
    Row(
        "DetectionOutput",
        ((1, OFFSETS), (1, SCORES), BOTH),
        objects,
        f"detection_output_param {{ {OUTPUT} nms_param {{ nms_threshold: 0.45 top_k: 400 }} }}",
        (lambda shape: 0.5 * torch.randn(shape), probabilities, some_priors),
        dialect="ssd",
        backward=False,
    ),
    Row(
        "MultiBoxLoss",
        ((ITEMS, OFFSETS), (ITEMS, SCORES), BOTH, (1, 1, BOXES, 8)),
        multibox,
        "multibox_loss_param { num_classes: 21 code_type: CENTER_SIZE }",
        (normal, normal, some_priors, true_boxes),
        dialect="ssd",
    ),
    Row(
        "Normalize",
        (MAP,),
        normalized,
        "norm_param { across_spatial: false }",
        blobs=(("scale", positive),),
        dialect="ssd",
    ),
    Row(
        "Permute",
        ((4, 84, 38, 38),),
        lambda x: x.permute(0, 2, 3, 1).contiguous(),
        "permute_param { order: 0 order: 2 order: 3 order: 1 }",
        dialect="ssd",
    ),
    Row(
        "PriorBox",
        (MAP, IMAGE),
        prior_boxes,
        "prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 }",
        dialect="ssd",
        backward=False,
    ),
    Row("SmoothL1Loss", ((4, 64, 56, 56),) * 2, partial(smooth), dialect="ssd"),
]
