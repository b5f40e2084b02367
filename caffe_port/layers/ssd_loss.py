"""SSD's losses: SmoothL1Loss, MultiBoxLoss. Source: smooth_L1_loss_layer.cpp, multibox_loss_layer.cpp (ssd)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Shape, layer
from caffe_port.layers.loss import Loss, _LogLogistic, _LogProbability
from caffe_port.layers.ssd_boxes import decode, encode, inside
from caffe_port.layers.ssd_matching import Boxes, Matching, ground_truth, match, select, thin
from caffe_port.spec import ssd

if TYPE_CHECKING:
    from collections.abc import Iterator


@layer("SmoothL1Loss")
class SmoothL1Loss(ssd.SmoothL1Loss, Loss):
    """The sum of 0.5 d^2 where |d| < 1, else |d| - 0.5, by the number of items; both bottoms get its gradient."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(x, y.reshape(x.shape), reduction="sum") / x.shape[0]


class _Divided(torch.autograd.Function):
    """x / by, whose gradient Caffe passes on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: Tensor) -> Tensor:
        return x / by

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


class _Forgetting(torch.autograd.Function):
    """The loss itself; after its backward pass the layer matches again. It depends on ``bottoms`` even if empty."""

    @staticmethod
    def forward(ctx: Any, layer: MultiBoxLoss, loss: Tensor, *bottoms: Tensor) -> Tensor:
        ctx.layer, ctx.bottoms = layer, len(bottoms)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.layer.matched = None
        return None, grad, *(None for _ in range(ctx.bottoms))


@layer("MultiBoxLoss")
class MultiBoxLoss(ssd.MultiBoxLoss, Loss):
    """How far predicted offsets and confidences are from the boxes that priors are matched with.

    Bottoms: offsets (num, priors * 4), scores (num, priors * num_classes), priors (1, 2, priors * 4), and true boxes
    (1, 1, n, 8) as rows (item, label, instance, xmin, ymin, xmax, ymax, difficult), item -1 for none. The loss is
    (loc_weight * loc + conf) / normalizer, the normalizer by default the number of matched priors.

    As in the original a match lives until the next backward pass: a second forward pass before that goes on with the
    first one's matches and negatives. An item without boxes gives no negatives, unless ``mining_type`` is NONE.
    ``propagate_down: false`` for the first or second bottom takes its part out of the loss's value too.
    """

    untraceable = "it works on boxes one by one"

    keeps_state = True

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.matched: list[Matching] | None = None

    def forward(self, loc: Tensor, conf: Tensor, prior: Tensor, gt: Tensor) -> Tensor:
        num = loc.shape[0]
        priors, variances = prior.detach().reshape(2, -1, 4)
        loc, conf = loc.reshape(num, len(priors), -1, 4), conf.reshape(num, len(priors), self.classes)
        truth = self._truth(gt)
        with torch.no_grad():
            fresh = [self._match(item, priors, variances, truth.get(i)) for i, item in enumerate(loc)]
            stored = fresh if self.matched is None else self.matched[:num]
            if len(stored) < num or any(len(m) != len(priors) for of in stored for m in of.boxes.values()):
                raise self._stale(f"a batch of {num} items and {len(priors)} priors")
            for i, of in enumerate(stored):
                most = max((int(m.max(initial=-1)) for m in of.boxes.values()), default=-1)
                if most >= (len(truth[i].labels) if i in truth else 0):
                    raise self._stale(f"item {i} with fewer boxes")
            mined = self._mine(stored, fresh, loc, conf, priors, variances, truth)
            if self.matched is None:
                self.matched = stored
                for of, own in zip(stored, mined, strict=True):
                    of.negatives = own
        matches, negatives = sum(of.count for of in stored), sum(len(of) for of in mined)
        total = loc.new_zeros(())
        if self.counts_loc and matches:
            d = torch.sub(*self._offsets(stored, loc, priors, variances, truth))
            smooth = F.smooth_l1_loss(d, torch.zeros_like(d), reduction="sum")
            total = total + self.loc_weight * (smooth if self.smooth else d.square().sum() / 2)
        if self.counts_conf:
            total = total + self._confidence(stored, matches + negatives, conf, truth)
        loss = total / self.normalizer(num, num * len(priors), total.new_tensor(float(matches)))
        return _Forgetting.apply(self, loss, loc, conf)

    def _stale(self, found: str) -> Exception:
        return self.shape_error(
            f"{found}, while the matches of an earlier forward pass still hold",
            expected="a backward pass before a forward pass with other boxes: only that clears matches, as in SSD",
        )

    def _truth(self, gt: Tensor) -> dict[int, Boxes]:
        truth = ground_truth(gt.detach().reshape(-1, 8).cpu().numpy(), self.difficult)
        labels = np.concatenate([np.empty(0, np.int64), *(of.labels for of in truth.values())])
        if (labels == self.background).any():
            raise self.shape_error(f"a true box of the background label {self.background}", expected="another label")
        any_label = self.agnostic and self.mining == "NONE"
        if len(labels) and not (any_label or 0 <= labels.min() <= labels.max() < self.classes):
            raise self.shape_error(
                f"true boxes of labels {labels.min()} to {labels.max()}", expected=f"0 to {self.classes - 1}"
            )
        return truth

    # -- matching ------------------------------------------------------------------------------------------------------

    def _match(self, loc: Tensor, priors: Tensor, variances: Tensor, boxes: Boxes | None) -> Matching:
        """The matches of one item with its offsets (P, location classes, 4)."""
        found = Matching({}, {}, np.empty(0, np.int64))
        if boxes is None:
            return found
        labels = [-1] if self.one_place else [c for c in range(self.classes) if c != self.background]
        if self.from_priors:
            of_all, best = self._match_with(priors, boxes.corners)
            for c in labels:
                own = of_all
                if not self.one_place:
                    is_c = (of_all > -1) & (boxes.labels[of_all] == c)
                    own = np.where(is_c, of_all, -1)
                found.boxes[c], found.overlaps[c] = own, best
            return found
        for c in labels:
            places = np.arange(len(boxes.labels)) if self.one_place else np.flatnonzero(boxes.labels == c)
            predicted = self._decoded(loc[:, max(c, 0)], priors, variances)
            own, found.overlaps[c] = self._match_with(predicted, boxes.corners[torch.from_numpy(places)])
            found.boxes[c] = np.where(own > -1, np.append(places, -1)[own], own)
        return found

    def _match_with(self, predicted: Tensor, boxes: Tensor) -> tuple[np.ndarray, np.ndarray]:
        predicted = predicted.cpu().to(boxes.dtype)
        crossing = (~inside(predicted).all(1)).numpy() if self.leaves_out else None
        return match(boxes, predicted, self.per_prediction, crossing)

    def _decoded(self, offsets: Tensor, priors: Tensor, variances: Tensor) -> Tensor:
        return decode(self.code, priors, None if self.encoded else variances, offsets)

    # -- mining --------------------------------------------------------------------------------------------------------

    def _mine(
        self,
        stored: list[Matching],
        fresh: list[Matching],
        loc: Tensor,
        conf: Tensor,
        priors: Tensor,
        variances: Tensor,
        truth: dict[int, Boxes],
    ) -> list[np.ndarray]:
        """The negatives of each item; HARD_EXAMPLE also takes matches away."""
        if self.mining == "NONE":
            return [np.empty(0, np.int64) for _ in stored]
        hard, mined = self.mining == "HARD_EXAMPLE", []
        losses = self._loc_losses(stored, loc, priors, variances, truth) if hard else None
        for i, of in enumerate(stored):
            own = of.boxes.get(-1)
            if own is None or -1 not in fresh[i].overlaps:
                mined.append(np.empty(0, np.int64))
                continue
            loss = self._conf_loss(conf[i], own, truth[i]) + (0 if losses is None else losses[i])
            if hard:
                eligible, count = np.ones(len(own), bool), self.sample_size
            else:
                eligible = (own == -1) & (fresh[i].overlaps[-1] < np.float32(self.neg_overlap))
                count = int(np.float32((own > -1).sum()) * np.float32(self.ratio))
            thinned = None
            if self.thins:
                boxes = priors if self.thins_priors else self._decoded(loc[i, :, 0], priors, variances)
                boxes = boxes.cpu()[torch.from_numpy(np.flatnonzero(eligible))]
                thinned = thin(boxes, loss[eligible], self.nms_threshold, self.nms_top_k)
            chosen = select(loss, eligible, count, thinned)
            mined.append(np.flatnonzero((own == -1) & chosen))
            if hard:
                own[(own > -1) & ~chosen] = -1
        return mined

    def _conf_loss(self, scores: Tensor, own: np.ndarray, boxes: Boxes) -> np.ndarray:
        """The confidence loss of each prior, for the label of its box or the background's: (P,)."""
        wanted = np.where(own > -1, np.append(boxes.labels, self.background)[own], self.background)
        label = torch.from_numpy(wanted).to(scores.device)[:, None]
        if self.softmax:
            least = torch.finfo(torch.float32).tiny
            return -scores.softmax(1).gather(1, label)[:, 0].clamp(min=least).log().cpu().numpy()
        target = torch.zeros_like(scores).scatter_(1, label, 1)
        return F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(1).cpu().numpy()

    def _loc_losses(self, stored: list[Matching], loc: Tensor, priors: Tensor, variances: Tensor, truth: Any) -> Any:
        """The location loss of each item's priors: (items, P)."""
        losses = np.zeros(loc.shape[:2], np.float32)
        if any(of.count for of in stored):
            d = torch.sub(*self._offsets(stored, loc, priors, variances, truth)).view(-1, 4)
            each = F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none") if self.smooth else d.square() / 2
            item, _, prior, _ = self._pairs(stored)
            losses[item, prior] = each.sum(1).cpu().numpy()
        return losses

    # -- the two parts -------------------------------------------------------------------------------------------------

    def _pairs(self, stored: list[Matching]) -> Iterator[np.ndarray]:
        """Of all matches the item, location class, prior and box, in the original's order."""
        found = [np.empty((4, 0), np.int64)]
        for i, of in enumerate(stored):
            for c, own in of.boxes.items():
                (places,) = np.nonzero(own > -1)
                found.append(np.stack((np.full_like(places, i), np.full_like(places, max(c, 0)), places, own[places])))
        return iter(np.concatenate(found, 1))

    def _offsets(
        self, stored: list[Matching], loc: Tensor, priors: Tensor, variances: Tensor, truth: dict[int, Boxes]
    ) -> tuple[Tensor, Tensor]:
        """Predicted and wanted offsets of all matches, (matches * 4,) each."""
        item, c, prior, box = (torch.from_numpy(numbers).to(loc.device) for numbers in self._pairs(stored))
        starts = np.cumsum([0, *(len(truth[i].labels) if i in truth else 0 for i in range(len(stored)))])
        boxes = torch.cat([truth[i].corners for i in sorted(truth) if 0 <= i < len(stored)]).to(loc)
        boxes = boxes[torch.from_numpy(starts).to(loc.device)[item] + box]
        own, variance, predicted = priors[prior], variances[prior], loc[item, prior, c]
        self._check_pairs(own, variance, boxes)
        wanted = encode(self.code, own, None if self.encoded else variance, boxes)
        if self.inside_only:
            of = own if self.from_priors else self._decoded(predicted.detach(), own, variance)
            predicted = torch.where(inside(of), predicted, wanted)
        if self.encoded:
            predicted, wanted = _Divided.apply(predicted, variance), wanted / variance
        return predicted.flatten(), wanted.flatten()

    def _check_pairs(self, priors: Tensor, variances: Tensor, boxes: Tensor) -> None:
        if not bool((variances > 0).all()):
            raise self.shape_error("a variance of 0 or less", expected="variances above 0")
        sized = {"CENTER_SIZE": (priors, boxes), "CORNER_SIZE": (priors,)}.get(self.code, ())
        for what, of in zip(("prior", "true box"), sized, strict=False):
            if not bool((of[:, 2:] > of[:, :2]).all()):
                raise self.shape_error(f"a matched {what} without width or height", expected="both above 0")

    def _confidence(self, stored: list[Matching], count: int, conf: Tensor, truth: dict[int, Boxes]) -> Tensor:
        """The confidence loss over ``count`` rows: all priors without mining, else matched ones and negatives."""
        every = self.mining == "NONE"
        if every:
            rows = conf.flatten(0, 1)
        elif count == 0:
            return conf.new_zeros(())
        else:
            rows = self._mined_rows(stored, conf, count)
        label, targets = self._targets(stored, len(rows), conf.shape[1], truth)
        if self.softmax:
            total, _ = _LogProbability.apply(
                rows[None].transpose(1, 2), label.to(conf.device)[None], None, self.classes
            )
            return total
        return _LogLogistic.apply(rows, targets.to(conf), None)

    def _mined_rows(self, stored: list[Matching], conf: Tensor, count: int) -> Tensor:
        """The scores of each item's matched priors, then of its negatives.

        Stale matches may be more or fewer than the rows that the pass counts: what is too much is left out, what lacks
        is 0, as fresh memory in the original.
        """
        places = [np.empty(0, np.int64)]
        for i, of in enumerate(stored):
            own = of.boxes.get(-1, np.empty(0, np.int64))
            places.append(np.concatenate((np.flatnonzero(own > -1), of.negatives)) + i * conf.shape[1])
        rows = conf.flatten(0, 1)[torch.from_numpy(np.concatenate(places)[:count]).to(conf.device)]
        return torch.cat((rows, rows.new_zeros(count - len(rows), self.classes)))

    def _targets(
        self, stored: list[Matching], count: int, priors: int, truth: dict[int, Boxes]
    ) -> tuple[Tensor, Tensor]:
        """Labels (count,) and, for the logistic loss, targets (count, num_classes).

        The original fills targets with the background's number before it sets ones, and without mining begins item i
        ``priors`` numbers, not rows, further on.
        """
        label = np.full(count, self.background)
        targets = np.full(count * self.classes, float(self.background), np.float32)
        at = 0
        for i, of in enumerate(stored):
            for own in of.boxes.values():
                (places,) = np.nonzero(own > -1)
                wanted = np.full_like(places, self.background + 1) if self.agnostic else truth[i].labels[own[places]]
                if self.mining == "NONE":
                    label[i * priors + places] = wanted
                    targets[i * priors + places * self.classes + wanted] = 1
                else:
                    row = at + np.arange(len(places))[: max(0, count - at)]
                    label[row], targets[row * self.classes + wanted[: len(row)]] = wanted[: len(row)], 1
                    at += len(places)
            row = at + np.arange(len(of.negatives))[: max(0, count - at)]
            targets[row * self.classes + self.background] = 1
            at += len(of.negatives)
        return torch.from_numpy(label), torch.from_numpy(targets).view(count, self.classes)
