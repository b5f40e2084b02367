"""Records of SSD's fork. Source: the files that caffe_port/layers/ssd_*.py name."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

from caffe_port.spec import sources
from caffe_port.spec.base import Blob, Shape, Spec, record
from caffe_port.spec.losses import Loss
from caffe_port.spec.sources import FromFiles
from caffe_port.spec.unknown import UNKNOWN, unknown_shape

SSD = ("ssd",)


def _single(number: float) -> float:
    """The number rounded to single precision."""
    return ctypes.c_float(number).value


def full(shape: Shape) -> Shape:
    """A shape of at most four axes with trailing ones, as from ``num()`` to ``width()``."""
    return (*shape, 1, 1, 1, 1)[:4]


@record("Permute", "permute_param", SSD)
class Permute(Spec):
    def setup(self, x: Shape) -> None:
        listed = self.p.order
        wrong = len(set(listed)) < len(listed) or max(listed, default=0) >= len(x)
        self.refuse(wrong, f"order {listed} for a bottom of shape {x}", expected="axes of the bottom, each once")
        self.order = (*listed, *(i for i in range(len(x)) if i not in listed))
        self.shares_memory = self.order == tuple(range(len(x)))
        moves = not self.shares_memory and self.fields.bottom == self.fields.top
        self.refuse(moves, "a top that is its bottom", expected="another name: the layer would overwrite its input")

    def reshape(self, x: Shape) -> list[Shape]:
        n = len(self.order)
        self.refuse_shape(len(x) != n, f"a bottom of shape {x}", expected=f"{n} axes, as when it was built")
        return [tuple(x[i] for i in self.order)]


@record("Normalize", "norm_param", SSD)
class Normalize(Spec):
    reads_bottoms = reads_tops = (0,)
    blob_specs = (Blob("scale", None, "scale_filler", default=1.0),)
    reads = ("across=across_spatial", "shared_scale=channel_shared", "eps")

    def setup(self, x: Shape) -> None:
        self._check(x)
        self.channels = x[1]
        self.make_blobs(() if self.shared_scale else (x[1],))

    def reshape(self, x: Shape) -> list[Shape]:
        self._check(x)
        wrong = not self.shared_scale and x[1] != self.channels
        self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"{self.channels} channels, as the scale has")
        return [x]

    def _check(self, x: Shape) -> None:
        expected = "2 to 4 axes: num, channels, height, width"
        self.refuse_shape(not 2 <= len(x) <= 4, f"a bottom of shape {x}", expected=expected)


@record("PriorBox", "prior_box_param", SSD)
class PriorBox(Spec):
    bottoms = (2, 2)
    labels = (0, 1)
    in_place = False
    reads = ("min_size", "max_size", "offset", "clip", "flip")

    def setup(self, x: Shape, data: Shape) -> None:
        p, small, large = self.p, self.min_size, self.max_size
        self.refuse(not small or min(small) <= 0, f"min_size {small}", expected="one or more, each above 0")
        wrong = large and (len(large) != len(small) or any(b <= a for a, b in zip(small, large, strict=True)))
        self.refuse(wrong, f"max_size {large} for min_size {small}", expected="a larger one for each, or none")
        self.variances = tuple(map(float, p.variance or [_single(0.1)]))
        wrong = len(self.variances) not in (1, 4) or min(self.variances) <= 0
        self.refuse(wrong, f"variance {p.variance}", expected="none, one or four, each above 0")
        self.ratios = self._ratios(p.aspect_ratio)
        self.image = self._pair("img_size", "img_h", "img_w")
        self.step = self._pair("step", "step_h", "step_w")
        self.count = len(small) * (1 + len(self.ratios)) + len(large)
        """Boxes in a cell."""

    def _ratios(self, given: list[float]) -> tuple[float, ...]:
        """Width by height of the boxes other than squares, in single precision; each of ``given`` once."""
        one = 1.0
        ratios = [one]
        for ratio in map(_single, given):
            self.refuse(ratio <= 0, f"aspect_ratio {ratio}", expected="one above 0")
            if all(abs(_single(ratio - known)) >= 1e-6 for known in ratios):
                ratios += [ratio, _single(1 / ratio)] if self.flip else [ratio]
        return tuple(r for r in ratios if abs(_single(r - one)) >= 1e-6)

    def _pair(self, both: str, height: str, width: str) -> Any:
        """(height, width) of a field that is given once for both, or for each; None where it is not given."""
        p = self.p
        one, apart = p.has(both), p.has(height) or p.has(width)
        if not one and not apart:
            return None
        self.refuse(one and apart, f"{both} and {height} or {width}", expected=f"{both}, or {height} with {width}")
        pair = (getattr(p, both),) * 2 if one else (getattr(p, height), getattr(p, width))
        self.refuse(min(pair) <= 0, f"{both if one else f'{height} and {width}'} {pair}", expected="numbers above 0")
        return pair

    def reshape(self, x: Shape, data: Shape) -> list[Shape]:
        wrong = max(len(x), len(data)) > 4 or not prod(x)
        self.refuse_shape(wrong, f"bottoms of shapes {x} and {data}", expected="at most 4 axes, and not empty")
        return [(1, 2, prod(full(x)[2:]) * self.count * 4)]


class _OfPriors(Spec):
    """Predictions for priors: offsets, a number for each class, and the priors."""

    def read_classes(self) -> None:
        p = self.p
        missing = not p.has("num_classes") or p.num_classes < 1
        self.refuse(missing, "no num_classes", expected="the number of classes, with the background")
        self.classes, self.one_place, self.background = p.num_classes, p.share_location, p.background_label_id

    def count_priors(self, loc: Shape, conf: Shape, prior: Shape) -> int:
        """The number of priors of three bottoms that belong together."""
        height = full(prior)[2]
        priors = height // 4
        wrong = len(prior) < 3 or prior[1] != 2 or height % 4 or prod(prior) != 2 * height
        self.refuse_shape(wrong, f"priors of shape {prior}", expected="(1, 2, 4 numbers for each prior)")
        wrong = not loc or not conf or loc[0] != conf[0]
        self.refuse_shape(wrong, f"locations {loc} with confidences {conf}", expected="as many items in both")
        loc_classes = 1 if self.one_place else self.classes
        for what, shape, each in (("locations", loc, 4 * loc_classes), ("confidences", conf, self.classes)):
            self.refuse_shape(
                full(shape)[1] != priors * each or prod(shape) != prod(shape[:2]),
                f"{what} of shape {shape} for {priors} priors and {self.classes} classes",
                expected=f"({shape[0]}, {priors * each}): {each} for each prior",
            )
        return priors


@record("DetectionOutput", "detection_output_param", SSD)
class DetectionOutput(_OfPriors):
    bottoms = (3, 4)
    labels = (0, 1, 2, 3)
    in_place = False
    reads = ("code=code_type", "encoded=variance_encoded_in_target", "keep_top_k", "least=confidence_threshold?")

    def setup(self, *shapes: Shape) -> None:
        self.read_classes()
        self.refuse(
            self.one_place and self.background == -1,
            "background_label_id -1 with share_location",
            expected="a background class: the original takes the shared location for it and finds none",
        )
        nms = self.p.nms_param
        self.threshold, self.eta = nms.nms_threshold, nms.eta
        self.top_k = nms.top_k if nms.has("top_k") else -1
        self.refuse(
            self.threshold < 0 or not 0 < self.eta <= 1,
            f"nms_threshold {self.threshold} and eta {self.eta}",
            expected="0 or more, and above 0 up to 1",
        )
        self.p.skip("visualize_threshold", "save_file")
        self.fields.skip("transform_param")
        self.count_priors(*shapes[:3])

    def reshape(self, *shapes: Shape) -> list[Shape]:
        of_class = self.count_priors(*shapes[:3])
        of_class = min(of_class, self.top_k) if self.top_k > -1 else of_class
        of_item = of_class * (self.classes - (0 <= self.background < self.classes))
        of_item = min(of_item, self.keep_top_k) if self.keep_top_k > -1 else of_item
        return [(1, 1, shapes[0][0] * max(of_item, 1), 7)]


@record("DetectionEvaluate", "detection_evaluate_param", SSD)
class DetectionEvaluate(Spec):
    bottoms = (2, 2)
    labels = (0, 1)
    in_place = False
    reads = (
        *("classes=num_classes", "background=background_label_id", "difficult=evaluate_difficult_gt"),
        "threshold=overlap_threshold",
    )

    def setup(self, found: Shape, truth: Shape) -> None:
        missing = not self.p.has("num_classes")
        self.refuse(missing, "no num_classes", expected="the number of classes, with the background")
        self.refuse(self.threshold <= 0, f"overlap_threshold {self.threshold}", expected="above 0")

    def counted(self) -> list[int]:
        """The labels of classes other than the background."""
        return [c for c in range(self.classes) if c != self.background]

    def reshape(self, found: Shape, truth: Shape) -> list[Shape]:
        for what, shape, n in (("objects", found, 7), ("true boxes", truth, 8)):
            num, channels, _, width = full(shape)
            wrong = len(shape) > 4 or num != 1 or channels != 1 or width != n
            self.refuse_shape(wrong, f"{what} of shape {shape}", expected=f"(1, 1, n, {n})")
        return [(1, 1, len(self.counted()) + full(found)[2], 5)]


@record("SmoothL1Loss", None, SSD)
class SmoothL1Loss(Loss):
    labels = reads_bottoms = ()

    def reshape(self, x: Shape, y: Shape) -> list[Shape]:
        wrong = not x or max(len(x), len(y)) > 4 or full(x) != full(y)
        self.refuse_shape(wrong, f"bottoms of shapes {x} and {y}", expected="equal shapes of at most 4 axes")
        return [()]


@record("MultiBoxLoss", "multibox_loss_param", SSD)
class MultiBoxLoss(_OfPriors, Loss):
    bottoms = (4, 4)
    labels = (2, 3)
    reads_bottoms = ()  # it keeps copies
    reads = (
        *("mining=mining_type", "agnostic=map_object_to_agnostic", "loc_weight", "code=code_type", "sample_size"),
        *("encoded=encode_variance_in_target", "from_priors=use_prior_for_matching", "difficult=use_difficult_gt"),
        *("inside_only=bp_inside", "leaves_out=ignore_cross_boundary_bbox", "ratio=neg_pos_ratio", "neg_overlap"),
        "thins_priors=use_prior_for_nms",
    )

    def setup(self, *shapes: Shape) -> None:
        p = self.p
        self.read_classes()
        self.softmax, self.smooth = p.enum("conf_loss_type") == "SOFTMAX", p.enum("loc_loss_type") == "SMOOTH_L1"
        self.per_prediction = p.overlap_threshold if p.enum("match_type") == "PER_PREDICTION" else None
        self.refuse(
            p.has("do_neg_mining") and p.do_neg_mining != (self.mining != "NONE"),
            f"do_neg_mining {str(p.do_neg_mining).lower()} with mining_type {self.mining}",
            expected="one that agrees",
            remedy="remove do_neg_mining, which mining_type replaces",
        )
        apart = self.mining != "NONE" and not self.one_place
        found = f"mining_type {self.mining} without share_location"
        self.refuse(apart, found, expected="mining_type: NONE, or share_location")
        outside = self.background >= self.classes and (self.softmax or self.mining != "NONE")
        self.refuse(outside, f"background_label_id {self.background}", expected=f"a class below {self.classes}")
        found = f"map_object_to_agnostic with {self.classes} classes"
        self.refuse(self.agnostic and self.classes != 2, found, expected="2: background and object")
        self.read_loss_param("VALID")
        none = self.mining == "HARD_EXAMPLE" and self.sample_size < 1
        self.refuse(none, f"sample_size {self.sample_size}", expected="1 or more")
        nms = p.nms_param
        self.thins = p.has("nms_param") and nms.nms_threshold > 0
        self.nms_threshold, self.nms_top_k = nms.nms_threshold, nms.top_k
        nms.skip("eta")
        counted = self.fields.propagate_down or [True, True, False, False]
        wrong = len(counted) != 4
        self.refuse(wrong, f"{len(counted)} propagate_down", expected="none, or one for each of the 4 bottoms")
        self.counts_loc, self.counts_conf = counted[:2]

    def reshape(self, loc: Shape, conf: Shape, prior: Shape, gt: Shape) -> list[Shape]:
        self.count_priors(loc, conf, prior)
        wrong = len(gt) > 4 or full(gt)[3] != 8
        self.refuse_shape(wrong, f"true boxes of shape {gt}", expected="(1, 1, n, 8)")
        return [()]


class _Transformed(FromFiles):
    """Pictures through SSD's transform_param."""

    def batch_shape(self, channels: int, sides: tuple[int, int] = (UNKNOWN, UNKNOWN)) -> Shape:
        t = self.fields.transform_param
        if t.has("resize_param"):
            known = t.resize_param.enum("resize_mode") != "FIT_SMALL_SIZE"
            sides = (t.resize_param.height, t.resize_param.width) if known else (UNKNOWN, UNKNOWN)
        crop = (t.crop_size, t.crop_size) if t.crop_size else (t.crop_h, t.crop_w)
        return (self.batch(), channels, *(c or s for c, s in zip(crop, sides, strict=True)))

    def batch(self) -> int:
        """Pictures in a pass."""
        return self.p.batch_size


@record("Data", "data_param", SSD)
class Data(_Transformed, sources.Data):
    pass


@record("ImageData", "image_data_param", SSD)
class ImageData(_Transformed, sources.ImageData):
    pass


class _Frames(_Transformed):
    """batch_size is in the data_param."""

    tops = (1, 2)

    def pictures(self) -> Shape:
        """Of the first top."""
        return self.batch_shape(UNKNOWN)

    def batch(self) -> int:
        return self.fields.data_param.batch_size


@record("AnnotatedData", "annotated_data_param", SSD)
class AnnotatedData(_Frames):
    def reshape(self) -> list[Shape]:
        boxes = (1, 1, UNKNOWN, 8) if self.p.has("anno_type") else unknown_shape(4)
        return [self.pictures(), boxes][: self.n_tops]


@record("VideoData", "video_data_param", SSD)
class VideoData(_Frames):
    def reshape(self) -> list[Shape]:
        data = self.pictures()
        return [data, data[:1]][: self.n_tops]
