"""Where a DecoupledNet loses: in its classification net, in the threshold on its scores, or in its segmentation half.

    python benchmarks/checks.py VOC NET.prototxt WEIGHTS [--list val] [--thresholds 0.3 0.5 0.7]

prints the average precision of every class (the area under precision over recall, not interpolated) and their mean;
precision and recall of all labels together at every threshold; and the mean IoU and the share of correct pixels at
every threshold, and where inference is told the true classes instead, which is what a classification net without errors
would give. Of a net of scores, such as WSSL's (WEIGHTS may be A,B), the last two: as it is, and where only the
background and the true classes compete.
A picture's true classes are those of ImageSets/labels.txt, else of its mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from caffe_port.detection.precision import average_precision
from caffe_port.net import Net
from caffe_port.segmentation.crops import present
from caffe_port.segmentation.ensembles import kind_of
from caffe_port.segmentation.evaluate import Scores, confusion
from caffe_port.segmentation.fcn import FullyConvolutional
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.inference import Segmenter
from caffe_port.tools.cli import commas, table
from caffe_port.tools.progress import each

Array = np.ndarray[Any, np.dtype[Any]]
TOLD = "true classes"


class Told(Segmenter):
    """A segmenter that may be told a picture's classes, from 0; None lets it find them."""

    told: Sequence[int] | None = None

    def find(self, scores: Tensor) -> list[int]:
        return super().find(scores) if self.told is None else list(self.told)


@dataclass(frozen=True)
class Checked:
    """Results over pictures.

    Attributes:
        scores: float32 (pictures, classes). shown: bool, of the same shape: the true classes.
        segmented: by threshold, and for TOLD.
    """

    scores: Array
    shown: Array
    segmented: dict[str, Scores]

    @property
    def precisions(self) -> list[float]:
        """The average precision of every class; nan for one that no picture shows."""
        columns = zip(self.scores.T, self.shown.T, strict=True)
        return [average_precision(s, t, int(t.sum()), kind=np.float64) if t.any() else np.nan for s, t in columns]

    def found(self, threshold: float) -> tuple[float, float]:
        """Precision and recall of all labels together."""
        found = self.scores > threshold
        right = float((found & self.shown).sum())
        return right / max(1, int(found.sum())), right / max(1, int(self.shown.sum()))


def check(
    folder: Folder, net: Net, which: str = "val", thresholds: Sequence[float] = (0.3, 0.5, 0.7), *, quiet: bool = True
) -> Checked:
    """Runs over the pictures of a list, which have masks."""
    segmenter = Told(net)
    labels = 1 + segmenter.classes
    counts = {name: np.zeros((labels, labels), np.int64) for name in (*map(str, thresholds), TOLD)}
    scores, shown = [], []
    for name in each(folder.names(which), "checks", quiet=quiet):
        picture, truth = folder.picture(name), folder.labels(name)
        true = [label - 1 for label in folder.labelled.get(name, present(truth))]
        segmenter.told = true
        found = segmenter(picture)
        counts[TOLD] += confusion(found.pixels, truth, labels, name)
        segmenter.told = None
        before: list[int] | None = true
        for threshold in thresholds:
            segmenter.threshold = threshold
            wanted = np.flatnonzero(found.scores > threshold).tolist()
            if wanted != before:
                before, found = wanted, segmenter(picture)
            counts[str(threshold)] += confusion(found.pixels, truth, labels, name)
        scores.append(found.scores)
        shown.append(np.isin(np.arange(segmenter.classes), true))
    return Checked(np.array(scores), np.array(shown), {name: Scores(count) for name, count in counts.items()})


def check_scores(folder: Folder, net: Net, which: str = "val", *, quiet: bool = True) -> dict[str, Scores]:
    """The same for a net of scores: as it is, and for TOLD."""
    system = FullyConvolutional(net)
    labels = 1 + system.classes
    counts = {name: np.zeros((labels, labels), np.int64) for name in ("as it is", TOLD)}
    for name in each(folder.names(which), "checks", quiet=quiet):
        picture, truth = folder.picture(name), folder.labels(name)
        found = system(picture)
        true = [0, *folder.labelled.get(name, present(truth))]
        told = np.array(true)[found.maps[true].argmax(0)]
        for way, pixels in (("as it is", found.pixels), (TOLD, told.astype(np.uint8))):
            counts[way] += confusion(pixels, truth, labels, name)
    return {name: Scores(count) for name, count in counts.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prototxt")
    parser.add_argument("weights")
    parser.add_argument("--list", default="val")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    given = parser.parse_args(argv)
    folder = Folder(given.folder)
    net = Net(given.prototxt, commas(given.weights))
    if kind_of(net) != "decouplednet":
        ways = check_scores(folder, net, given.list, quiet=False)
        lines = [(name, f"{100 * it.mean:.1f}", f"{100 * it.accuracy:.1f}") for name, it in ways.items()]
        print(table(("", "mean IoU %", "pixels %"), lines, right=(1, 2)))
        return
    found = check(folder, net, given.list, given.thresholds, quiet=False)
    precisions = found.precisions
    rows = [(name, f"{100 * p:.1f}") for name, p in zip(folder.classes, precisions, strict=True)]
    print(table(("class", "AP %"), [*rows, ("mean", f"{100 * np.nanmean(precisions):.1f}")], right=(1,)), "\n")
    lines = list[tuple[str, ...]]()
    for name, it in found.segmented.items():
        shares = found.found(float(name)) if name != TOLD else (1.0, 1.0)
        lines.append((name, *(f"{100 * share:.1f}" for share in (*shares, it.mean, it.accuracy))))
    print(table(("threshold", "precision %", "recall %", "mean IoU %", "pixels %"), lines, right=(1, 2, 3, 4)))


if __name__ == "__main__":
    main()
