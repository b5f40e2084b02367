"""Losses, accuracies, and DeepLab's layers for image-level labels: their bottoms and the shapes of their tops.

Source: the layers' own files in Caffe, which caffe_port/layers/loss.py, logistic_loss.py, distance_loss.py,
accuracy.py and deeplab_wssl.py name.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

from caffe_port.spec.base import NOH, Shape, Spec, define, record

__all__ = ["Accuracy", "AdaptiveBiasChannel", "BiasChannel", "Loss", "UniqueLabel"]


class Loss(Spec):
    """A loss over predictions and labels, divided as ``loss_param`` says.

    Attributes:
        ignore: the label that is ignored, or None.
        normalization: FULL, VALID, BATCH_SIZE, NONE or PRE_FIXED, which divides by ``fixed``.
    """

    bottoms = (2, 2)
    loss = True
    labels: tuple[int, ...] = (1,)
    reads_bottoms: tuple[int, ...] = (1,)
    ignore: int | None = None
    fixed: float = 1.0

    def read_loss_param(self, default: str) -> None:
        """Read ``loss_param``; ``normalize`` is the older form of ``normalization`` (loss_layer.cpp)."""
        p = self.fields.loss_param
        self.ignore, self.fixed = p.ignore_label if p.has("ignore_label") else None, p.pre_fixed_normalizer
        if p.has("normalization"):
            p.skip("normalize")
            self.normalization = p.enum("normalization")
        elif p.has("normalize"):
            self.normalization = "VALID" if p.normalize else "BATCH_SIZE"
        else:
            self.normalization = default


class SoftmaxLoss(Loss):
    """A label for each pixel of the scores; a second top for the probabilities."""

    filled_from = 0

    tops = (1, 2)

    def setup(self, x: Shape, label: Shape) -> None:
        self.read_loss_param("VALID")
        self.over = 1

    def classes(self, channels: int) -> int:
        """The number of classes for this number of channels."""
        return channels

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(
            prod(label) * x[self.over] != prod(x),
            f"scores {x} with labels {label}",
            expected="a label for each pixel of the scores",
        )
        return [(), x][: self.n_tops]


@record("SoftmaxWithLoss", "softmax_param")
class SoftmaxWithLoss(SoftmaxLoss):
    ignores = ("engine",)

    def setup(self, x: Shape, label: Shape) -> None:
        self.read_loss_param("VALID")
        self.over = self.axis(self.p.axis, x)


@record("RedSoftmaxWithLoss", "red_softmax_loss_param", NOH)
class RedSoftmaxWithLoss(SoftmaxLoss):
    reads = ("class_num?",)

    def classes(self, channels: int) -> int:
        self.refuse_shape((self.class_num or 0) > channels, f"class_num {self.class_num}", expected=f"up to {channels}")
        return channels if self.class_num is None else self.class_num


@record("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    def setup(self, x: Shape, target: Shape) -> None:
        if self.dialect.sigmoid_loss_by_batch:
            self.normalization = "BATCH_SIZE"
        else:
            self.read_loss_param("BATCH_SIZE")

    def reshape(self, x: Shape, target: Shape) -> list[Shape]:
        self.refuse_shape(
            prod(x) != prod(target), f"predictions {x} with targets {target}", expected="as many targets as predictions"
        )
        return [()]


class ByItem(Loss):
    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(
            not x or prod(label) != x[0], f"scores {x} with labels {label}", expected="a label for each item"
        )
        return [()]


define("MultinomialLogisticLoss", ByItem, reads_bottoms=(0, 1))
define("HingeLoss", ByItem, "hinge_loss_param", reads=("norm",))


@record("InfogainLoss", "infogain_loss_param")
class InfogainLoss(Loss):
    bottoms = (2, 3)
    tops = (1, 2)
    labels = (1, 2)
    matrix_shape: Shape = ()
    """The shape of the matrix in a file, once that has been read."""

    def setup(self, x: Shape, label: Shape, matrix: Shape | None = None) -> None:
        self.from_probabilities = self.dialect.infogain_takes_probabilities
        self.reads_bottoms = (0, 1, 2) if self.from_probabilities else (1, 2)
        if self.from_probabilities:
            self.over, self.ignore, self.normalization = 1, None, "BATCH_SIZE"
            self.refuse(self.n_tops == 2, "2 tops", expected="1 top", remedy="the probabilities are its first bottom")
        else:
            self.over = self.axis(self.p.axis, x)
            self.refuse(
                self.fields.loss_param.has("normalize"),
                "loss_param.normalize",
                expected="normalization: VALID or BATCH_SIZE",
            )
            self.read_loss_param("VALID")
        self.refuse(
            matrix is None and not self.p.has("source"),
            "no infogain matrix",
            expected="a third bottom, or infogain_loss_param { source: FILE }",
        )
        self.p.skip("source")

    def classes(self, x: Shape) -> int:
        """The number of classes of scores of shape ``x``."""
        return prod(x[1:]) if self.from_probabilities else x[self.over]

    def reshape(self, x: Shape, label: Shape, matrix: Shape | None = None) -> list[Shape]:
        classes = self.classes(x)
        self.refuse_shape(
            prod(label) * classes != prod(x),
            f"scores {x} with labels {label}",
            expected="a label for each pixel of the scores",
        )
        matrix = matrix or self.matrix_shape
        self.refuse_shape(
            matrix and prod(matrix) != classes**2,
            f"an infogain matrix of shape {matrix}",
            expected=f"{classes} x {classes}",
        )
        return [(), x][: self.n_tops]


@record("EuclideanLoss")
class EuclideanLoss(Loss):
    labels = reads_bottoms = ()

    def reshape(self, x: Shape, y: Shape) -> list[Shape]:
        self.refuse_shape(
            x[:1] != y[:1] or prod(x) != prod(y),
            f"bottoms of shapes {x} and {y}",
            expected="as many items, of equal size",
        )
        return [()]


@record("ContrastiveLoss", "contrastive_loss_param")
class ContrastiveLoss(Loss):
    bottoms = (3, 3)
    labels = reads_bottoms = (2,)
    reads = ("margin", "legacy=legacy_version")
    legacy: bool

    def setup(self, x: Shape, y: Shape, alike: Shape) -> None:
        self.legacy = self.legacy or self.dialect.contrastive_legacy

    def reshape(self, x: Shape, y: Shape, alike: Shape) -> list[Shape]:
        self.refuse_shape(
            x != y or len(x) < 2 or prod(x[2:]) != 1 or prod(alike) != x[0] or alike[:1] != x[:1],
            f"bottoms of shapes {x}, {y} and {alike}",
            expected="two of shape (num, channels), and a number for each pair",
        )
        return [()]


@record("Accuracy", "accuracy_param")
class Accuracy(Spec):
    bottoms = (2, 2)
    tops = (1, 2)
    labels = (0, 1)
    reads = ("top_k",)

    def setup(self, x: Shape, label: Shape) -> None:
        p, self.by_item = self.p, self.dialect.accuracy_by_item
        self.refuse(
            self.by_item and self.n_tops == 2,
            "2 tops",
            expected="1 top",
            remedy="accuracies by class need --dialect bvlc",
        )
        self.over = 1 if self.by_item else self.axis(p.axis, x)
        self.ignore = p.ignore_label if not self.by_item and p.has("ignore_label") else None

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        classes = prod(x[1:]) if self.by_item else x[self.over]
        self.refuse_shape(
            prod(label) * classes != prod(x),
            f"scores {x} with labels {label}",
            expected="a label for each position, without the class axis",
        )
        self.refuse(self.top_k > classes, f"top_k {self.top_k}", expected=f"no more than the {classes} classes")
        return [(), (classes,)][: self.n_tops]


class PixelAccuracy(Spec):
    """Labels (num, 1, height, width) of the scores' pixels."""

    bottoms = (2, 2)
    labels = (0, 1)
    reads: ClassVar[tuple[str, ...]] = ("top_k", "ignore=ignore_label?")

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(
            len(x) != 4 or label != (x[0], 1, *x[2:]),
            f"scores {x} with labels {label}",
            expected="labels (num, 1, height, width) of the scores",
        )
        self.refuse(self.top_k > prod(x[1:]), f"top_k {self.top_k}", expected="no more than there are classes")
        return [()]


define("EltwiseAccuracy", PixelAccuracy, "eltwise_accuracy_param", NOH)


@record("RedAccuracy", "red_accuracy_param", NOH)
class RedAccuracy(PixelAccuracy):
    reads = (*PixelAccuracy.reads, "class_num?")

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape((self.class_num or 0) > x[1], f"class_num {self.class_num}", expected=f"up to {x[1]}")
        return super().reshape(x, label)


@record("BinaryAccuracy", "binary_accuracy_param", NOH)
class BinaryAccuracy(Spec):
    bottoms = (2, 2)
    labels = (0, 1)
    reads = ("mode=accuracy_mode",)

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(x != label, f"scores {x} with labels {label}", expected="equal shapes")
        return [()]


@record("UniqueLabel", "unique_label_param")
class UniqueLabel(Spec):
    labels = (0,)
    reads = ("most=max_labels", "forced=force_label", "ignored=ignore_label")

    def setup(self, x: Shape) -> None:
        self.refuse(
            self.most <= len(set(self.forced)), f"max_labels {self.most}", expected="more than there are in force_label"
        )

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse_shape(len(x) != 4 or x[1] != 1, f"labels {x}", expected="(num, 1, height, width)")
        return [(x[0], self.most, 1, 1)]


class Biased(Spec):
    """Scores (num, channels, height, width), and (num, labels, 1, 1) of the channels present in each image."""

    bottoms = (2, 2)

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(
            len(x) != 4 or len(label) != 4 or label[0] != x[0] or label[2:] != (1, 1),
            f"scores {x} with labels {label}",
            expected="4 axes each, labels (num, labels, 1, 1) of the scores' num",
        )
        return [x]


@record("BiasChannel", "bias_channel_param")
class BiasChannel(Biased):
    labels = (1,)
    reads = ("background=bg_bias", "foreground=fg_bias", "ignored=ignore_label")

    def setup(self, x: Shape, label: Shape) -> None:
        self.refuse(
            self.background < 0 or self.foreground < 0,
            f"bg_bias {self.background}, fg_bias {self.foreground}",
            expected="0 or more",
        )


@record("AdaptiveBiasChannel", "adaptive_bias_channel_param")
class AdaptiveBiasChannel(Biased):
    labels = (0, 1)
    reads = ("rounds=num_iter", "suppress=suppress_others", "margin=margin_others")

    def setup(self, x: Shape, label: Shape) -> None:
        self.portions = (self.p.bg_portion, self.p.fg_portion)
        self.refuse(self.rounds < 1, f"num_iter {self.rounds}", expected="at least 1")
        self.refuse(self.margin < 0, f"margin_others {self.margin}", expected="0 or more")
        self.refuse(
            not all(0 <= portion <= 1 for portion in self.portions),
            "bg_portion {}, fg_portion {}".format(*self.portions),
            expected="0 to 1",
        )
