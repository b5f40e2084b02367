"""DetectionOutput: from predicted offsets and confidences to objects. Source: detection_output_layer.cpp (ssd)."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.console import info
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.capabilities import WritesFiles
from caffe_port.layers.ssd_boxes import decode, suppress
from caffe_port.layers.ssd_files import OutputFiles
from caffe_port.spec import ssd

Found = tuple[Tensor, Tensor, Tensor]
"""Labels (int64), scores and boxes (n, 4) of an item's objects."""

_SLACK = 1e-4
"""How far a probability may lie outside 0 to 1 by rounding."""


@layer("DetectionOutput")
class DetectionOutput(ssd.DetectionOutput, Layer, WritesFiles):
    """The objects of each item: rows (item, label, score, xmin, ymin, xmax, ymax) in parts of the image.

    Bottoms: offsets (num, priors * 4), probabilities (num, priors * num_classes), priors (1, 2, priors * 4). For each
    class but the background the boxes above ``confidence_threshold``, best first, at most ``nms_param.top_k``, thinned
    by overlap; of an item at most ``keep_top_k``. Rows go by item, label, then falling score. Items without an object
    have no row; if none has one, each has a row of -1. Of equal scores the earlier prior is the better one; where
    ``keep_top_k`` cuts between equal scores, the original's choice depends on its sort, here the earlier label stays.

    ``save_output_param`` with a folder, a label map and a name_size_file writes files (``allow_writes``) of the objects
    of ``num_test_image`` pictures; without all three it writes nothing, as in the original.
    """

    untraceable = "it works on boxes one by one"

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.files: OutputFiles | None = None
        self._save()
        if self.p.visualize:
            info(f"{self.where}: layer {self.name}: visualize opens no windows here; caffe-port detect draws boxes")

    def _save(self) -> None:
        """Prepare to write the files of ``save_output_param``."""
        p = self.p.save_output_param
        p.skip(
            "num_test_image", "output_format", "output_name_prefix", "resize_param", "name_size_file", "label_map_file"
        )
        if p.output_directory and p.label_map_file and p.name_size_file:
            self.check_writes(p.output_directory)
            self.files = OutputFiles(self, p)
            self.files.start()
            self.keeps_state = True

    def forward(self, loc: Tensor, conf: Tensor, prior: Tensor, *picture: Tensor) -> Tensor:
        low, high = (float(end) for end in conf.aminmax()) if conf.numel() else (0.0, 0.0)
        if not -_SLACK <= low <= high <= 1 + _SLACK:
            raise self.shape_error(
                f"confidences from {low:g} to {high:g}",
                expected="probabilities from 0 to 1",
                remedy="put a Softmax over each prior's classes (or a Sigmoid) before it",
            )
        items = self.detect(loc, conf, prior)
        self.save(items)
        return rows(items, conf)

    def save(self, items: list[Found]) -> None:
        """Hand a pass's objects to the files, if any are written."""
        if self.files is None:
            return
        self.files.start()
        for label, score, boxes in items:
            self.files.add(label.tolist(), *(t.detach().float().cpu().numpy() for t in (score, boxes)))

    def detect(self, loc: Tensor, conf: Tensor, prior: Tensor) -> list[Found]:
        """The objects of each item, from any scores."""
        num, priors = loc.shape[0], (*prior.shape, 1)[2] // 4
        loc = loc.reshape(num, priors, -1, 4)
        boxes, variances = prior.reshape(2, priors, 1, 4)
        if self.code != "CORNER" and not bool((boxes[..., 2:] > boxes[..., :2]).all()):
            raise self.shape_error("a prior without width or height", expected="widths and heights above 0")
        decoded = decode(self.code, boxes, None if self.encoded else variances, loc)
        return [self._of_item(*item) for item in zip(decoded, conf.reshape(num, priors, -1), strict=True)]

    def _of_item(self, decoded: Tensor, scores: Tensor) -> Found:
        """Of boxes (priors, 1 or classes, 4) and scores (priors, classes)."""
        found: list[Found] = []
        for c, score in enumerate(scores.t().contiguous()):
            if c == self.background:
                continue
            if self.least is None:
                index = torch.arange(len(score), device=score.device)
            else:
                index = (score > self.least).nonzero().flatten()
            kept = score[index]
            if -1 < self.top_k < len(kept):  # those of the best scores, and all that equal the last of them
                last = kept.topk(self.top_k).values[-1] if self.top_k else float("inf")
                among = (kept >= last).nonzero().flatten()
                index, kept = index[among], kept[among]
            kept, order = kept.sort(descending=True, stable=True)
            index = index[order][: self.top_k if self.top_k > -1 else None]
            if len(index):
                found.append(
                    (torch.full_like(index, c), kept[: len(index)], decoded[index, 0 if self.one_place else c])
                )
        if not found:
            return scores.new_empty(0, dtype=torch.int64), scores.new_empty(0), scores.new_empty(0, 4)
        stays = suppress([boxes for _, _, boxes in found], self.threshold, self.eta)
        found = [(label[i], score[i], boxes[i]) for (label, score, boxes), i in zip(found, stays, strict=True)]
        label, score, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        if -1 < self.keep_top_k < len(label):
            best = score.sort(descending=True, stable=True).indices[: self.keep_top_k]
            best = best[label[best].sort(stable=True).indices]
            label, score, boxes = label[best], score[best], boxes[best]
        return label, score, boxes


def rows(items: list[Found], like: Tensor) -> Tensor:
    """(1, 1, n, 7) rows of the items' objects."""
    if not any(len(label) for label, _, _ in items):
        empty = like.new_full((1, 1, len(items), 7), -1)
        empty[0, 0, :, 0] = torch.arange(len(items), device=like.device)
        return empty
    made = [
        torch.cat((torch.stack((torch.full_like(score, i), label.to(score.dtype), score), 1), boxes), 1)
        for i, (label, score, boxes) in enumerate(items)
    ]
    return torch.cat(made)[None, None]
