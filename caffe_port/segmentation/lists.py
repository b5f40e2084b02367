"""The lists that the data layers of the published definitions read, made from a folder of pictures and masks.

They were released without the program that made them; it is described in section 5 of the paper and in DeconvNet's
paper.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caffe_port.errors import CaffeError, FileError
from caffe_port.paths import is_file
from caffe_port.segmentation.atomic_folder import Outputs
from caffe_port.segmentation.crops import Object, choose, combinatorial, dominant, objects, present
from caffe_port.segmentation.folder import MASKS, PHOTOGRAPHS, Folder
from caffe_port.segmentation.parallel import everywhere
from caffe_port.segmentation.proposals import edge_boxes, forest
from caffe_port.segmentation.voc import write_labels

__all__ = ["FULL", "LEVELS", "Level", "Plan", "Prepared", "prepare"]

Array = np.ndarray[Any, np.dtype[Any]]
Watch = Callable[[Sequence[str], str], Iterable[str]]

FULL = "Full"
LEVELS = (FULL, "25", "10", "5")
"""Levels of strong annotation: all pictures, or a number for each class."""
_OBJECTS, _WEAK = "VOC_OBJECT", "ImageLabels"
"""Further folders of pictures: of single objects, and of masks that represent image-level labels."""
_TILE = (37, 41)
"""Sides of the label pattern that represents an image-level label: prime, so that no resizing skips a label."""


@dataclass(frozen=True)
class Level:
    """How many pictures have strong annotations: FULL, a number for each class, or any name with a list."""

    name: str
    list: str = ""

    @property
    def suffix(self) -> str:
        """The suffix of lists for levels without published definitions."""
        return "" if self.name == FULL else f"_{self.name}"


@dataclass(frozen=True)
class Plan:
    """Settings of the lists.

    Attributes:
        train, val: lists of the folder.
        levels: of strong annotation.
        crops: N_p, crops for each subset of a picture's classes. drawn: the smallest share of random ones among them.
        proposals: for each picture, in DeconvNet's second stage.
        deconvnet: whether to write the lists of its two stages.
        masks_as_labels: train the classification net on the classes in a crop's mask, not on those of its picture.
        square: make the classification net's pictures square as for inference, by zeros on the right or below.
        label_dim: numbers in a vector of classes; as many as there are classes for 0.
        model: a structured forest's file. seed: of choices and random boxes.
    """

    train: str = "train"
    val: str = "val"
    levels: tuple[Level, ...] = tuple(map(Level, LEVELS))
    crops: int = 200
    drawn: float = 0.5
    proposals: int = 50
    deconvnet: bool = True
    masks_as_labels: bool = False
    square: bool = False
    label_dim: int = 0
    model: str | None = None
    seed: int = 0


@dataclass
class Prepared:
    """The written lines by list, and remarks on the data: remark -> the pictures or classes concerned."""

    lines: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, what: str, names: Iterable[str]) -> None:
        if names := list(names):
            self.remarks[what] = names

    def warnings(self) -> list[str]:
        """A line for each remark: the number of pictures or classes, and the first of them."""
        return [
            f"{what}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in self.remarks.items()
        ]


class Surveyed(NamedTuple):
    """A picture's (height, width), and the classes in its mask; None without one."""

    size: tuple[int, int]
    shown: tuple[int, ...] | None


class Cuts(NamedTuple):
    """The folder of crops of single objects: its final and its temporary name."""

    name: str
    folder: Path


class Examples(NamedTuple):
    """A picture's lines: combinatorial crops; and by label, objects and proposals."""

    crops: list[str]
    objects: list[tuple[int, str]]
    proposals: list[tuple[int, str]]


def prepare(
    folder: Folder,
    output: Path,
    plan: Plan,
    *,
    workers: int = 1,
    overwrite: bool = False,
    watch: Watch = lambda names, what: names,
) -> Prepared:
    """Writes all lists under ``output``, whose folder VOC2012 links to the pictures; all of them or none.

    Equal folders and plans give equal files, with any number of workers.

    Args:
        watch: called with names and a description of the work; yields the names as they are done.

    Raises:
        FileError: a file is missing, or exists already. FormatError, ShapeError, CaffeError: a picture, mask or list
            is wrong, or no picture is left for a list.
    """
    made = Prepared()
    if plan.model is not None:
        forest(plan.model)
    out = Outputs(output, _paths(plan), overwrite)
    train, val = folder.names(plan.train), folder.names(plan.val)
    lists = {level: folder.names(level.list) for level in plan.levels if level.list}  # before any picture is read
    made.remark(f"pictures in {plan.val} as well as in {plan.train}", sorted({*train} & {*val}))
    names = list(dict.fromkeys(train + val))
    survey = dict(zip(watch(names, "reading"), everywhere(partial(_survey, folder), names, workers), strict=True))
    labels = _labels(folder, survey, made)
    strong = {level: _strong(folder, level, lists.get(level), plan, train, survey, made) for level in plan.levels}
    for level in plan.levels:
        without = [name for name in strong[level] if not survey[name].shown]
        made.remark(f"pictures of level {level.name} that show no class, so have no crops", without)
    dim = plan.label_dim or len(folder.classes)
    if dim < len(folder.classes):
        raise CaffeError("label_dim", str(dim), expected=f"at least the {len(folder.classes)} classes")

    with out:
        out.link(folder)
        weak = _Weak(folder, survey, labels, out, plan)
        weak.write("cls_imgset/train.txt", watch(train, "image-level labels"))
        weak.write("cls_imgset/val.txt", val)
        masked = [name for name in val if survey[name].shown is not None]
        for level in plan.levels:
            _masks(folder, f"wssl_strong_imgset{level.suffix}/train.txt", strong[level], out)
            _masks(folder, f"wssl_strong_imgset{level.suffix}/val.txt", masked, out)
            if level.suffix:
                out.write(f"strong{level.suffix}.txt", strong[level])
                weak.write(f"cls_imgset{level.suffix}/train.txt", strong[level])
                weak.write(f"cls_imgset{level.suffix}/val.txt", val)
                known = {*strong[level]}
                others = [name for name in train if name not in known]
                if not others:
                    made.remark(f"all pictures are strong in level {level.name}, so weak as well", train)
                weak.write(f"wssl_weak_imgset{level.suffix}/train.txt", others or train)
        for split in ("train", "val"):
            wanted = {level: {*(strong[level] if split == "train" else val)} for level in plan.levels}
            chosen = [name for name in names if any(name in some for some in wanted.values()) and survey[name].shown]
            _pixels(folder, split, chosen, wanted, plan, dim, out, workers, watch)
        made.lines = out.lines
    return made


def _paths(plan: Plan) -> list[str]:
    """Every list of a plan."""
    paths = [
        name
        for level in plan.levels
        if (s := level.suffix)
        for name in (f"strong{s}.txt", f"wssl_weak_imgset{s}/train.txt")
    ]
    for split in ("train", "val"):
        paths.append(f"cls_imgset/{split}.txt")
        for level in plan.levels:
            paths += [f"seg_imgset_{level.name}/{split}.txt", f"cls_imgset{level.suffix}/{split}.txt"]
            paths.append(f"wssl_strong_imgset{level.suffix}/{split}.txt")
            if plan.deconvnet:
                paths += [f"stage_{stage}_train_imgset{level.suffix}/{split}.txt" for stage in (1, 2)]
    return paths


def _survey(folder: Folder, name: str) -> Surveyed:
    if is_file(folder.mask(name)):
        labels = folder.labels(name)
        return Surveyed((labels.shape[0], labels.shape[1]), present(labels))
    return Surveyed(folder.size(name), None)


def _labels(folder: Folder, survey: Mapping[str, Surveyed], made: Prepared) -> dict[str, tuple[int, ...]]:
    """The image-level labels: those of the folder's file, else those of the mask."""
    labels = {}
    for name, (_, shown) in survey.items():
        given = folder.labelled.get(name, shown)
        if given is None:
            raise FileError(
                str(folder.mask(name)), "no such mask, and no line in ImageSets/labels.txt", expected="either of them"
            )
        labels[name] = given
    differ = [name for name, (_, shown) in survey.items() if shown is not None and shown != labels[name]]
    made.remark("pictures whose masks have other classes than ImageSets/labels.txt", differ)
    made.remark("pictures without a class", [name for name, given in labels.items() if not given])
    return labels


def _strong(
    folder: Folder,
    level: Level,
    names: list[str] | None,
    plan: Plan,
    train: list[str],
    survey: Mapping[str, Surveyed],
    made: Prepared,
) -> list[str]:
    """The strongly annotated pictures of a level: ``names``, or chosen."""
    if names is not None:
        known = {*train}
        for name in names:
            if name not in known:
                raise CaffeError(level.list, name, expected=f"pictures of {plan.train}")
            if survey[name].shown is None:
                raise FileError(
                    str(folder.mask(name)), "no such mask", expected=f"one for every picture of {level.list}"
                )
        return names
    masked = {name: shown for name in train if (shown := survey[name].shown) is not None}
    if not masked:
        raise FileError(str(folder.root / MASKS), f"no mask of a picture of {plan.train}", expected="some")
    if level.name == FULL:
        made.remark(f"pictures without a mask, so not in level {FULL}", [n for n in train if n not in masked])
        return list(masked)
    if not level.name.isdecimal() or not int(level.name):
        raise CaffeError("level", repr(level.name), expected=f"{FULL}, a number for each class, or NAME:LIST")
    names, short = choose(masked, int(level.name), len(folder.classes), plan.seed)
    got = [f"{folder.classes[label - 1]} {count}" for label, count in short.items()]
    made.remark(f"classes with fewer pictures than the {level.name} asked for", got)
    return names


@dataclass
class _Weak:
    """Whole pictures for WINDOW_CLS_DATA, which finds their classes in a mask: one that holds no more than these."""

    folder: Folder
    survey: Mapping[str, Surveyed]
    labels: Mapping[str, tuple[int, ...]]
    out: Outputs
    plan: Plan
    written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._place = None if self.plan.masks_as_labels else self.out.pictures(_WEAK)

    def write(self, path: str, names: Iterable[str]) -> None:
        self.out.write(path, [self._line(name) for name in names])

    def _line(self, name: str) -> str:
        (height, width), mask = self.survey[name].size, self.folder.mask(name)
        place = MASKS
        if self._place is not None:
            place = _WEAK
            if name not in self.written:
                self.written.add(name)
                write_labels(self._place / f"{name}.png", pattern(self.labels[name], height, width))
        elif not is_file(mask):
            raise FileError(str(mask), "no such mask", remedy="omit --masks-as-labels")
        if self.plan.square:  # beyond a picture the data layer gives zeros, without a label
            width = height = max(width, height)
        return f"/{PHOTOGRAPHS}/{self.folder.photograph(name).name} /{place}/{name}.png 0 0 {width - 1} {height - 1}"


def _masks(folder: Folder, path: str, names: Iterable[str], out: Outputs) -> None:
    """Whole pictures and their masks, for IMAGE_SEG_DATA."""
    out.write(path, [f"/{PHOTOGRAPHS}/{folder.photograph(name).name} /{MASKS}/{name}.png" for name in names])


def pattern(labels: Sequence[int], height: int, width: int) -> Array:
    """Masks that represent image-level labels: every crop contains all of them."""
    choice = np.random.default_rng(0).integers(0, max(len(labels), 1), _TILE)
    tile = np.array(labels or (0,), np.uint8)[choice]
    return np.tile(tile, (-(-height // _TILE[0]), -(-width // _TILE[1])))[:height, :width]


def _pixels(
    folder: Folder,
    split: str,
    names: Sequence[str],
    wanted: Mapping[Level, set[str]],
    plan: Plan,
    dim: int,
    out: Outputs,
    workers: int,
    watch: Watch,
) -> None:
    """The lists for which masks are read, of one split."""
    paths = {level: f"seg_imgset_{level.name}/{split}.txt" for level in wanted}
    files = {level: out.open(path) for level, path in paths.items()}
    name = f"{_OBJECTS}_{split}"
    cuts = Cuts(name, out.pictures(name)) if plan.deconvnet else None
    found: dict[str, Examples] = {}
    work = partial(_examples, folder, plan, dim, cuts, split == "train")
    with closing(everywhere(work, names, workers)) as results:  # none writes pictures when this is left by an error
        for name, examples in zip(watch(names, f"crops, {split}"), results, strict=True):
            for level, some in wanted.items():
                if name in some:
                    out.add(paths[level], files[level], examples.crops)
            found[name] = examples._replace(crops=[])
    for level, some in wanted.items():
        if not out.lines[paths[level]]:
            raise CaffeError(paths[level], "no line", expected="a picture with a mask that shows a class")
        if plan.deconvnet:
            for stage, kind in ((1, "objects"), (2, "proposals")):
                lines = [line for name in names if name in some for line in getattr(found[name], kind)]
                path = f"stage_{stage}_train_imgset{level.suffix}/{split}.txt"
                out.write(path, _balanced(lines) if split == "train" else [line for _, line in lines])


def _balanced(lines: Sequence[tuple[int, str]]) -> list[str]:
    """Repeats every class's lines until all have as many as the most frequent class (DeconvNet's paper, 5.1)."""
    by_class: dict[int, list[str]] = {}
    for label, line in lines:
        by_class.setdefault(label, []).append(line)
    most = max(map(len, by_class.values()), default=0)
    return [line for _, own in sorted(by_class.items()) for line in (own * (most // len(own) + 1))[:most]]


def _examples(folder: Folder, plan: Plan, dim: int, cuts: Cuts | None, training: bool, name: str) -> Examples:
    """A picture's lines. For validation its crops are the whole picture, once for each class."""
    picture, labels = folder.picture(name), folder.labels(name)
    (height, width), shown = labels.shape, present(labels)
    files = f"/{PHOTOGRAPHS}/{folder.photograph(name).name} /{MASKS}/{name}.png"
    proposals, _ = edge_boxes(picture, max(plan.crops, 4 * plan.proposals), plan.model)
    whole = np.array([0, 0, width - 1, height - 1])
    if training:
        rng = np.random.default_rng([plan.seed, zlib.crc32(os.fsencode(name))])
        crops = [_line(files, whole, _vector(shown, dim))]
        for chosen, boxes in combinatorial(labels, proposals, plan.crops, rng, drawn=plan.drawn):
            vector = _vector(chosen, dim)
            crops += [_line(files, box, vector) for box in boxes.tolist()]
    else:
        crops = [_line(files, whole, _vector([label], dim)) for label in shown]
    if cuts is None:
        return Examples(crops, [], [])
    single = [_cut(cuts, f"{name}_{i}", picture, it, alone) for i, (it, alone) in enumerate(objects(labels))]
    seen = [(it.label, _line(files, it.box)) for it in dominant(labels, proposals, plan.proposals)]
    return Examples(crops, single, seen)


def _line(files: str, box: Iterable[int], vector: str = "") -> str:
    return f"{files} {' '.join(map(str, box))}{vector}"


def _vector(chosen: Iterable[int], dim: int) -> str:
    numbers = ["0"] * dim
    for label in chosen:
        numbers[label - 1] = "1"
    return f" {' '.join(numbers)}"


def _cut(cuts: Cuts, stem: str, picture: Array, it: Object, alone: Array) -> tuple[int, str]:
    """Writes an object's crop and its mask, and returns their line."""
    from PIL import Image

    x1, y1, x2, y2 = it.box
    Image.fromarray(picture[y1 : y2 + 1, x1 : x2 + 1]).save(cuts.folder / f"{stem}.jpg", quality=95)
    write_labels(cuts.folder / f"{stem}.png", alone)
    return it.label, f"/{cuts.name}/{stem}.jpg /{cuts.name}/{stem}.png"
