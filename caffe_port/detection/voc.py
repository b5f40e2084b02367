"""Scores of detections as PASCAL VOC's: annotations, matching, average precision (devkit, VOCevaldet.m)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from caffe_port.detection.objects import Found
from caffe_port.detection.precision import average_precision
from caffe_port.errors import FileError, FormatError
from caffe_port.paths import is_file

__all__ = ["Truth", "judge", "mean_precision", "read_annotation"]


@dataclass(frozen=True)
class Truth:
    """The true boxes of a picture: names, corners (n, 4) in VOC's pixels, which start at 1, and difficult ones."""

    names: tuple[str, ...]
    boxes: np.ndarray
    difficult: np.ndarray


def read_annotation(path: str | Path) -> Truth:
    """A picture's annotation, an XML file of VOC.

    Raises:
        FileError: it is missing. FormatError: it is not such a file.
    """
    if not is_file(path):
        raise FileError(str(path), "no such file", expected="an annotation of VOC")
    names, boxes, difficult = [], [], []
    try:
        text = Path(path).read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise FormatError(str(path), "a document type", expected="plain XML")
        for item in ElementTree.fromstring(text).iter("object"):
            box = item.find("bndbox")
            edges = (
                [float(box.findtext(edge) or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
                if box is not None
                else []
            )
            if len(edges) != 4 or not np.isfinite(edges).all():
                raise FormatError(str(path), "an object without a box", expected="bndbox with xmin, ymin, xmax, ymax")
            names.append((item.findtext("name") or "").strip())
            boxes.append(edges)
            difficult.append((item.findtext("difficult") or "0").strip() == "1")
    except (ElementTree.ParseError, ValueError) as error:
        raise FormatError(str(path), f"which cannot be read: {error}", expected="an annotation of VOC") from error
    return Truth(tuple(names), np.array(boxes).reshape(-1, 4), np.array(difficult, bool))


def judge(
    objects: Sequence[tuple[str, Found]], truth: Mapping[str, Truth], name: str, overlap: float = 0.5
) -> tuple[np.ndarray, np.ndarray, int]:
    """Match the objects of one class with the true boxes: (scores, which are correct, number of true boxes).

    In order of falling score, an object is matched with the box of its picture that it overlaps most. It is correct if
    they overlap by at least ``overlap`` and no earlier one had that box; on a difficult box it is ignored.

    Args:
        objects: pairs of a picture's name and an object. truth: by picture.
    """
    own = {p: [i for i, n in enumerate(t.names) if n == name] for p, t in truth.items()}
    positives = sum(int((~t.difficult[own[p]]).sum()) for p, t in truth.items())
    ranked = sorted(objects, key=lambda pair: -pair[1].score)
    taken, scores, right = set[tuple[str, int]](), [], []
    for picture, found in ranked:
        places, hit = own.get(picture, []), False
        shares = _overlaps(np.array(found.box), truth[picture].boxes[places]) if places else np.zeros(0)
        if len(shares) and shares.max() >= overlap:
            place = places[int(shares.argmax())]
            if truth[picture].difficult[place]:
                continue
            hit = (picture, place) not in taken
            taken.add((picture, place))
        scores.append(found.score)
        right.append(hit)
    return np.array(scores), np.array(right, bool), positives


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection by union in whole pixels: a box from 1 to 3 is three wide."""
    width, height = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1).T
    common = np.where((width > 0) & (height > 0), width * height, 0)
    areas = [np.prod(b[..., 2:] - b[..., :2] + 1, axis=-1) for b in (box, others)]
    return common / (areas[0] + areas[1] - common)


def mean_precision(
    results: Mapping[str, Sequence[Found]],
    truth: Mapping[str, Truth],
    names: Mapping[int, str],
    *,
    overlap: float = 0.5,
) -> dict[str, dict[str, float]]:
    """The average precision of each class that has true boxes, and their means.

    Args:
        results: objects by picture; pictures of ``truth`` that it lacks have none. names: of the labels.

    Returns:
        By class, and "mean": {"11-point": VOC 2007's, "area": since VOC 2010}, in double precision.
    """
    found: dict[str, dict[str, float]] = {}
    for label, name in names.items():
        objects = [(p, o) for p, those in results.items() for o in those if o.label == label]
        scores, right, positives = judge(objects, truth, name, overlap)
        if positives:
            found[name] = {
                kind: average_precision(scores, right, positives, version, np.float64)
                for kind, version in (("11-point", "11point"), ("area", "MaxIntegral"))
            }
    means = {
        kind: float(np.mean([of[kind] for of in found.values()])) if found else 0.0 for kind in ("11-point", "area")
    }
    return {**found, "mean": means}
