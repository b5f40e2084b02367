"""py-faster-rcnn's Python layers, implemented here; no code of a definition runs.

They draw from numpy's global stream, as the original does: ``np.random.seed`` seeds it (the original's training script
with 3), Caffe's ``random_seed`` does not. Settings that the prototxt lacks: :mod:`caffe_port.data.rcnn_settings`.

Source: lib/rpn/proposal_layer.py, anchor_target_layer.py, proposal_target_layer.py, lib/roi_data_layer/layer.py of
rbgirshick/py-faster-rcnn (781a917).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import rcnn_boxes, rcnn_settings
from caffe_port.data.roi_batches import RoiBatches
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.spec import rcnn

__all__ = ["AnchorTarget", "Proposal", "ProposalTarget", "RoIData"]


class _Module(Layer):
    def read(self, *needed: str) -> dict[str, Any]:
        """``param_str``, which must name ``needed``; the phase's settings updated with it are ``self.cfg``."""
        self.reads_module()
        given = rcnn_settings.parse_yaml(self.p.param_str, f"{self.where}: layer {self.name}")
        for name in needed:
            if not isinstance(given.get(name), int):
                raise self.error(f"param_str {self.p.param_str!r}", expected=f"'{name}': an integer")
        self.cfg = rcnn_settings.of_phase(self.phase, given)
        return given

    def read_anchors(self) -> None:
        """The boxes around every cell; ``ratios`` beside ``scales`` are those of soeaver/caffe-model."""
        given = self.read("feat_stride")
        self.stride = given["feat_stride"]
        lists = given.get("scales", (8, 16, 32)), given.get("ratios", (0.5, 1, 2))
        if not all(isinstance(a, (list, tuple)) and a and all(isinstance(b, (int, float)) for b in a) for a in lists):
            raise self.error(f"param_str {self.p.param_str!r}", expected="lists of numbers as scales and ratios")
        self.anchors = rcnn_boxes.anchors(*lists)
        self.anchors_per_cell = len(self.anchors)
        self.border = given.get("allowed_border", 0)

    def one_item(self, scores: Tensor, boxes: Tensor | None = None) -> None:
        """Raises for batches, and for maps with another number of anchors."""
        if len(scores) != 1 or scores.shape[1] != 2 * self.anchors_per_cell:
            raise self.shape_error(
                f"scores of shape {tuple(scores.shape)}", expected=f"(1, {2 * self.anchors_per_cell}, height, width)"
            )
        if boxes is not None:
            wanted = (1, 4 * self.anchors_per_cell, *scores.shape[2:])
            if tuple(boxes.shape) != wanted:
                raise self.shape_error(f"box deltas of shape {tuple(boxes.shape)}", expected=str(wanted))

    def truth(self, boxes: Tensor) -> np.ndarray:
        """(G, 5) boxes and their classes."""
        found = boxes.detach().cpu().numpy()
        if found.ndim != 2 or found.shape[1] != 5 or not len(found):
            raise self.shape_error(f"boxes of shape {found.shape}", expected="(number, 5), one or more")
        return found


def _tensors(like: Tensor, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(a, np.float32)).to(like.device, like.dtype) for a in arrays)


@layer("Python rpn.proposal_layer.ProposalLayer")
class Proposal(rcnn.Proposal, _Module):
    """The best boxes of a region proposal network, (R, 5) of item 0 and corners; a second top gives their scores.

    Of equal scores the last one comes first. Boxes that overlap better ones by RPN_NMS_THRESH or more are dropped.
    """

    def setup(self, *shapes: Shape) -> None:
        self.read_anchors()

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.one_item(scores, deltas)
        cfg, image = self.cfg, info.detach().cpu().numpy().reshape(-1)
        height, width = scores.shape[2:]
        score = scores.detach()[0, self.anchors_per_cell :].permute(1, 2, 0).cpu().numpy().ravel()
        moves = deltas.detach()[0].permute(1, 2, 0).cpu().numpy().reshape(-1, 4)
        boxes = rcnn_boxes.moved(rcnn_boxes.shifted(self.anchors, height, width, self.stride), moves)
        boxes = rcnn_boxes.clip(boxes, image[0], image[1])
        widths, heights = rcnn_boxes.sizes(boxes)
        least = image.dtype.type(cfg.RPN_MIN_SIZE) * image[2]
        large = np.flatnonzero((widths >= least) & (heights >= least))
        best = large[np.argsort(score[large], kind="stable")[::-1]]
        if cfg.RPN_PRE_NMS_TOP_N > 0:
            best = best[: cfg.RPN_PRE_NMS_TOP_N]
        most = max(cfg.RPN_POST_NMS_TOP_N, 0)
        kept = best[rcnn_boxes.suppress(boxes[best], score[best], cfg.RPN_NMS_THRESH, most)]
        rois = np.hstack((np.zeros((len(kept), 1), np.float32), boxes[kept]))
        tops = _tensors(scores, rois, score[kept][:, None])
        return tops if self.n_tops == 2 else tops[0]


@layer("Python rpn.anchor_target_layer.AnchorTargetLayer")
class AnchorTarget(rcnn.AnchorTarget, _Module):
    """For every anchor its label (1, 0 or -1 for neither), the target of its box, and the weights of both.

    Labels are 1 for the anchors that overlap a box best and those over RPN_POSITIVE_OVERLAP, 0 below
    RPN_NEGATIVE_OVERLAP; if a kind has too many, randomly drawn ones become -1.
    """

    def setup(self, *shapes: Shape) -> None:
        self.read_anchors()
        weight = self.cfg.RPN_POSITIVE_WEIGHT if "RPN_POSITIVE_WEIGHT" in self.cfg else -1
        if weight >= 0 and not 0 < weight < 1:
            raise self.error(f"RPN_POSITIVE_WEIGHT {weight}", expected="a number between 0 and 1, or one below 0")
        if self.phase != "TRAIN":
            self.cfg = rcnn_settings.of_phase("TRAIN")

    def forward(self, scores: Tensor, boxes: Tensor, info: Tensor, data: Tensor | None = None) -> tuple[Tensor, ...]:
        self.one_item(scores)
        cfg, truth, image = self.cfg, self.truth(boxes), info.detach().cpu().numpy().reshape(-1)
        height, width = scores.shape[2:]
        everywhere = rcnn_boxes.shifted(self.anchors, height, width, self.stride)
        low, high = everywhere[:, :2], everywhere[:, 2:]
        limit = (image[1] + self.border, image[0] + self.border)
        inside = np.flatnonzero((low >= -self.border).all(1) & (high < limit).all(1))
        anchors = everywhere[inside]
        if not len(anchors):
            raise self.shape_error(f"no anchor inside a picture of {image[0]} x {image[1]} pixels", expected="some")
        shared = rcnn_boxes.overlaps(anchors, truth[:, :4])
        best, most = shared.argmax(1), shared.max(1)
        label = np.full(len(anchors), -1, np.float32)
        if not cfg.RPN_CLOBBER_POSITIVES:
            label[most < cfg.RPN_NEGATIVE_OVERLAP] = 0
        label[(shared == shared.max(0)).any(1)] = 1
        label[most >= cfg.RPN_POSITIVE_OVERLAP] = 1
        if cfg.RPN_CLOBBER_POSITIVES:
            label[most < cfg.RPN_NEGATIVE_OVERLAP] = 0
        _thin(label, 1, int(cfg.RPN_FG_FRACTION * cfg.RPN_BATCHSIZE))
        _thin(label, 0, cfg.RPN_BATCHSIZE - int((label == 1).sum()))
        inner = np.where(label[:, None] == 1, np.array(cfg.RPN_BBOX_INSIDE_WEIGHTS), 0)
        if cfg.RPN_POSITIVE_WEIGHT < 0:
            outer = np.where(label >= 0, 1 / max((label >= 0).sum(), 1), 0)
        else:
            shares = {1: cfg.RPN_POSITIVE_WEIGHT, 0: 1 - cfg.RPN_POSITIVE_WEIGHT}
            ones, zeros = (np.where(label == k, w / max((label == k).sum(), 1), 0) for k, w in shares.items())
            outer = ones + zeros
        goals = rcnn_boxes.deltas_of(anchors, truth[best, :4])
        cells = (height, width, -1)

        def over(values: np.ndarray, fill: float) -> np.ndarray:
            """Values of the anchors inside the picture, as a map: (channels, height, width)."""
            all_of = np.full((len(everywhere), *values.shape[1:]), fill, np.float32)
            all_of[inside] = values
            return all_of.reshape(cells).transpose(2, 0, 1)

        labels = over(label, -1).reshape(1, 1, -1, width)
        others = (over(v, 0)[None] for v in (goals, inner, np.repeat(outer[:, None], 4, 1)))
        return _tensors(scores, labels, *others)


def _thin(label: np.ndarray, kind: int, most: int) -> None:
    """Draw which labels of a kind become -1, if there are more than ``most``."""
    found = np.flatnonzero(label == kind)
    if len(found) > most:
        label[np.random.choice(found, size=len(found) - most, replace=False)] = -1


@layer("Python rpn.proposal_target_layer.ProposalTargetLayer")
class ProposalTarget(rcnn.ProposalTarget, _Module):
    """BATCH_SIZE rois, drawn from the proposals and the true boxes, with labels and box targets."""

    def setup(self, *shapes: Shape) -> None:
        self.classes = self.read("num_classes")["num_classes"]
        if self.phase != "TRAIN":
            self.cfg = rcnn_settings.of_phase("TRAIN")

    def forward(self, rois: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        cfg, truth = self.cfg, self.truth(boxes)
        proposed = rois.detach().flatten(1).cpu().numpy()
        every = np.vstack((proposed, np.hstack((np.zeros((len(truth), 1), truth.dtype), truth[:, :4]))))
        if (every[:, 0] != 0).any():
            raise self.shape_error("rois of several items", expected="one picture a batch")
        if not (0 <= truth[:, 4]).all() or not (cfg.AGNOSTIC or (truth[:, 4] < self.classes).all()):
            raise self.shape_error(f"classes {sorted(set(truth[:, 4]))}", expected=f"0 to {self.classes - 1}")
        shared = rcnn_boxes.overlaps(every[:, 1:], truth[:, :4])
        best, most = shared.argmax(1), shared.max(1)
        label = truth[best, 4]
        front = np.flatnonzero(most >= cfg.FG_THRESH)
        back = np.flatnonzero((most < cfg.BG_THRESH_HI) & (most >= cfg.BG_THRESH_LO))
        batch = np.inf if cfg.BATCH_SIZE == -1 else cfg.BATCH_SIZE
        n_front = int(min(np.round(cfg.FG_FRACTION * batch), len(front)))
        n_back = int(min(batch - n_front, len(back)))
        drawn = [
            np.random.choice(found, size=n, replace=False)
            for found, n in ((front, n_front), (back, n_back))
            if len(found)
        ]
        chosen = np.concatenate([*drawn, np.empty(0, np.int64)]).astype(np.int64)
        label = label[chosen]
        label[n_front:] = 0
        goals = rcnn_boxes.deltas_of(every[chosen, 1:], truth[best[chosen], :4])
        if cfg.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
            goals = (goals - np.array(cfg.BBOX_NORMALIZE_MEANS)) / np.array(cfg.BBOX_NORMALIZE_STDS)
        target, weight = (np.zeros((len(chosen), self.classes, 4), np.float32) for _ in range(2))
        shown = np.flatnonzero(label > 0)
        place = np.ones(len(shown), np.int64) if cfg.AGNOSTIC else label[shown].astype(np.int64)
        target[shown, place] = goals[shown]
        weight[shown, place] = cfg.BBOX_INSIDE_WEIGHTS
        per_roi = [a.reshape(len(chosen), -1) for a in (target, weight, weight > 0)]
        return _tensors(rois, every[chosen], label, *per_roi)


@layer("Python rpn.proposal_target_layer.ProposalTargetLayer")
class ProposalTarget4(rcnn.ProposalTarget4, ProposalTarget):
    """py-R-FCN's: the same with four axes; with AGNOSTIC all classes share one box. From source."""

    def forward(self, rois: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.reshape(len(t), -1, 1, 1) for t in super().forward(rois, boxes.flatten(1)))


@layer("Python roi_data_layer.layer.RoIDataLayer")
class RoIData(rcnn.RoIData, _Module):
    """Pictures with their boxes, or with rois, labels and targets, from a list of records.

    ``set_roidb`` sets the records, as the original's training script does; see :class:`RoiBatches`.
    """

    keeps_state = True

    def setup(self) -> None:
        self.classes = self.read("num_classes")["num_classes"]
        self.cfg = rcnn_settings.of_phase("TRAIN")
        if "HAS_RPN" not in self.cfg.given:
            self.cfg["HAS_RPN"] = self.fields.top[1] == "im_info"
        if self.cfg.HAS_RPN and "IMS_PER_BATCH" not in self.cfg.given:
            self.cfg["IMS_PER_BATCH"] = 1
        if "BBOX_REG" not in self.cfg.given and not self.cfg.HAS_RPN:
            self.cfg["BBOX_REG"] = self.n_tops > 3
        self.batches = RoiBatches(self.cfg, self.classes, f"{self.where}: layer {self.name}")
        self.first = self.batches.shapes()
        if not self.cfg.HAS_RPN and self.n_tops == 5:
            self.first = self.first[:5]  # the older Fast R-CNN, whose bbox_loss_weights are the inside ones
        if len(self.first) != self.n_tops:
            raise self.error(f"{self.n_tops} tops", expected=f"{len(self.first)} by the settings HAS_RPN and BBOX_REG")
        self.register_buffer("like", torch.empty(0), persistent=False)

    def set_roidb(self, roidb: list[dict[str, Any]]) -> None:
        """The records to draw batches from."""
        self.batches.set_roidb(roidb)

    def forward(self) -> tuple[Tensor, ...]:
        return _tensors(self.like, *self.batches.next()[: self.n_tops])
