"""Plans the steps of every cell of the table for a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caffe_port.segmentation import lists
from caffe_port.segmentation.experiment.recipe import Recipe
from caffe_port.segmentation.experiment.steps import Step

__all__ = ["LEVELS", "SYSTEMS", "Cell", "Plan", "plan"]

SYSTEMS = {
    "decouplednet": "DecoupledNet",
    "decouplednet-str": "DecoupledNet-Str",
    "deconvnet": "DeconvNet",
    "wssl": "WSSL",
}
"""The paper's names of the systems, by the names of their steps."""

LEVELS = dict(zip(lists.LEVELS, range(2, 6), strict=True))
"""Levels of strong annotation, and the numbers of DecoupledNet's files for them."""

REPEATED = ("10", "5")
"""The levels that are trained with several seeds."""
VAL = "val"


@dataclass(frozen=True)
class Cell:
    """One number of the table: the step with its confusion counts. ``same_as`` names the system with which it is
    identical; ``seed`` is that of its trainings."""

    level: str
    system: str
    step: Step
    same_as: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """All steps, each after those that it needs, and the cells; the folder of pictures, if it is known."""

    cells: list[Cell]
    steps: list[Step] = field(default_factory=list)
    folder: Path | None = None


def plan(
    folder: Path | Sequence[str],
    output: Path,
    recipe: Recipe,
    *,
    classes: int,
    levels: Sequence[str] = tuple(LEVELS),
    lists: Sequence[str] = (),
    systems: Sequence[str] = tuple(SYSTEMS),
    seed: int = 0,
    device: str = "cpu",
    threshold: float = 0.5,
    init: str = "",
    start: str = "",
    untrained: bool = False,
    repeats: Sequence[int] = (),
) -> Plan:
    """The steps that produce the table.

    Args:
        folder: in VOC's layout, or the options of ``make_shapes`` that draw one.
        output: the folder of all results.
        classes: of the folder, without the background.
        levels: those of LEVELS; ``lists`` has them in the form of ``prepare --levels``, where that differs.
        threshold: the score above which DecoupledNet finds a class.
        init: a VGG-16 whose convolutions all systems start from; those of all but DeconvNet stay fixed.
        start: weights from which DecoupledNet's trainings start, each from the layers that its net has.
        untrained: also the cells of the nets as they start, after the others.
        repeats: further seeds for the levels in REPEATED. The pictures, their crops and what is kept of these are
            those of ``seed``.
    """
    made = _Maker(folder, output, recipe, classes, list(lists or levels), seed, device, threshold, init, start)
    cells = [made.cell(level, system) for level in levels for system in systems]
    if untrained:
        made.begin(seed, "-untrained", recipe.untrained)
        cells += [made.cell(level, system) for level in levels for system in systems]
        made.recipe = recipe
    for other in repeats:
        made.begin(other, f"-seed{other}")
        cells += [made.cell(level, system) for level in levels for system in systems if level in REPEATED]
    return Plan(cells, made.steps, made.folder)


class _Maker:
    """Creates each step once, by name."""

    def __init__(
        self,
        folder: Path | Sequence[str],
        output: Path,
        recipe: Recipe,
        classes: int,
        lists: list[str],
        seed: int,
        device: str,
        threshold: float,
        init: str,
        start: str,
    ) -> None:
        self.output, self.recipe, self.classes, self.data_seed = output, recipe, classes, seed
        self.device, self.threshold, self.lists, self.init, self.start = device, threshold, lists, init, start
        self.seed, self.suffix = seed, ""
        self.steps: list[Step] = []
        if isinstance(folder, Path):
            self.folder, self.data = folder, tuple[Step, ...]()
        else:
            self.folder = output / "data"
            words = ["-m", "caffe_port.tools.make_shapes", "-o", str(self.folder), *folder, "-f", "-q"]
            self.data = (self.step("data", words, (), "classes.txt"),)

    def begin(self, seed: int, suffix: str, recipe: Recipe | None = None) -> None:
        """Another seed, and recipe, for all trainings from here on."""
        self.seed, self.suffix, self.recipe = seed, suffix, recipe or self.recipe

    def step(
        self, name: str, words: Sequence[object], needs: Sequence[Step], makes: str, *, curve: bool = False
    ) -> Step:
        folder = self.output / name
        log = folder / "log" if curve else None
        tail = ["--log-dir", str(log)] if log else []
        step = Step(name, tuple(map(str, [*words, *tail])), tuple(needs), folder / makes, log and log / "train.csv")
        known = next((other for other in self.steps if other.name == name), None)
        assert known in (None, step), f"two steps called {name}"
        if known is None:
            self.steps.append(step)
        return step

    # -- shared by cells -----------------------------------------------------------------------------------------------

    def prepared(self) -> Step:
        recipe = self.recipe
        words = ["-m", "caffe_port.tools.prepare", self.folder, "-o", self.output / "lists", "--levels", *self.lists]
        words += ["--square"] if recipe.square else []
        words += ["--crops", recipe.crops]
        words += ["--proposals", recipe.proposals] if recipe.proposals else ["--no-deconvnet"]
        words += ["--seed", self.data_seed, "-f", "-q"]
        return self.step("lists", words, self.data, "cls_imgset/train.txt")

    def nets(self, level: str) -> Step:
        """The definitions with the lists of a level's strong pictures; lists.FULL has all."""
        recipe, name = self.recipe, "nets" if level == lists.FULL else f"nets-{level}"
        words = ["-m", "caffe_port.tools.build", "-f", "-q", "-o", self.output / name]
        words += ["--width", recipe.width, "--input-size", recipe.size]
        words += ["--batch", recipe.batch, "--classes", self.classes, "--data-root", self.output / "lists"]
        for option, width in (("--fc-width", recipe.fc_width), ("--decoder-width", recipe.decoder_width)):
            words += [option, width] if width else []
        words += ["--kept", self.output] if self.init else ["--norm"]
        words += ["--score-rate", recipe.score_rate] if recipe.score_rate != 10 else []
        words += [] if level == lists.FULL else ["--level", level]
        return self.step(name, words, (), "deconvnet/stage_1_solver.prototxt")

    def kept(self, name: str, nets: Step, net: Path, items: int) -> Step:
        """What the fixed convolutions give for the training pictures of one of ``nets``."""
        words = ["-m", "caffe_port.tools.keep_features", net, self.init, "-o", self.output / name]
        words += ["--items", items, "--seed", self.data_seed, "--device", self.device, "-q"]
        return self.step(name, words, (self.prepared(), nets), "list.txt")

    def training(self, name: str, recipe: str, words: Sequence[object], needs: Sequence[Step], makes: str) -> Step:
        """A step that trains, with the recipe's settings: those for this name, if there are any."""
        training = self.recipe.training(name, recipe)
        name += self.suffix
        folder = self.output / name
        settings = {**training.settings(self.seed), "snapshot_prefix": folder / "snapshot"}
        options = [word for setting in settings.items() for word in ("--set", "{}={}".format(*setting))]
        options += ["--dialect", training.dialect] if training.dialect else []
        return self.step(name, [*words, "--device", self.device, *options, "--resume"], needs, makes, curve=True)

    def folded(self, name: str, net: Path, weights: Step, *options: str) -> Step:
        name += self.suffix
        words = ["-m", "caffe_port.tools.fold", net, weights.makes, "-o", self.output / name / "inference.caffemodel"]
        words += ["--passes", self.recipe.passes, "--seed", self.seed, "--device", self.device, *options, "-f", "-q"]
        return self.step(name, words, (weights,), "inference.caffemodel")

    def scored(self, name: str, net: Path, *weights: Step | str, options: Sequence[object]) -> Step:
        """Segments the validation pictures with what steps made, and files, and counts their masks."""
        name += self.suffix
        masks, needs = self.output / f"{name}-masks", [one for one in weights if isinstance(one, Step)]
        given = ",".join(str(one.makes if isinstance(one, Step) else one) for one in weights)
        words = ["-m", "caffe_port.tools.segment", self.folder, "--list", VAL, "--prototxt", net]
        words += ["--weights", given, "-o", masks, "--device", self.device, *options, "-f"]
        segmented = self.step(f"{name}-masks", words, needs, ".")
        words = ["-m", "caffe_port.tools.evaluate", masks, "--truth", self.folder, "--list", VAL]
        scores = self.output / f"{name}-scores"
        words += ["--confusion", scores / "confusion.csv", "--html", scores / "page.html", "-f"]
        return self.step(f"{name}-scores", words, (segmented,), "confusion.csv")

    # -- systems -------------------------------------------------------------------------------------------------------

    def cell(self, level: str, system: str) -> Cell:
        if system == "decouplednet-str" and level == lists.FULL:
            return Cell(level, system, self.decouplednet(level), "decouplednet", self.seed)
        return Cell(level, system, getattr(self, system.replace("-str", "_str"))(level), seed=self.seed)

    def classifier(self, level: str = "") -> Step:
        """The classification net without BN, from all image-level labels, or only from a level's strong pictures."""
        name, recipe, nets = "classifier", "classifier", self.nets(lists.FULL)
        if level:
            name, recipe, nets = f"classifier-str-{level}", "classifier-str", self.nets(level)
        folder = nets.makes.parents[1] / "classification"
        words = ["-m", "caffe_port.tools.train_classifier", folder / "train_cls_voc_solver.prototxt"]
        words += ["-o", self.output / f"{name}{self.suffix}" / "trained.caffemodel"]
        words += ["--init", self.init] if self.init else ["--weights", self.start] if self.start else []
        needs = [self.prepared(), nets]
        if self.init:
            items = self.recipe.kept[recipe] * (int(level) * self.classes if level else 1)
            kept = f"kept-cls_{level}" if level else "kept-cls"
            needs.append(self.kept(kept, nets, folder / "keep_cls_voc.prototxt", items))
        trained = self.training(name, recipe, words, needs, "trained.caffemodel")
        if self.init:
            return trained
        return self.folded(f"{name}-folded", folder / "train_cls_voc_make_inference.prototxt", trained, "--absorb")

    def decouplednet(self, level: str, *, alone: bool = False) -> Step:
        """``alone``: from the strong pictures only."""
        recipe = "decouplednet-str" if alone else "decouplednet"
        name, nets = f"{recipe}-{level}", self.nets(lists.FULL).makes.parents[1] / "decouplednet"
        classifier = self.classifier(level if alone else "")
        words = ["-m", "caffe_port.tools.train_segmentation", level, "--nets", nets]
        words += ["--classifier", classifier.makes, "-o", self.output / f"{name}{self.suffix}" / "trained.caffemodel"]
        words += ["--init", self.start] if self.start else []
        needs = [self.prepared(), self.nets(lists.FULL), classifier]
        if self.init:
            keeping = nets / f"{LEVELS[level]:03}_keep_seg_{level}_anno.prototxt"
            kept = self.kept(f"kept-seg_{level}", self.nets(lists.FULL), keeping, self.recipe.kept["decouplednet"])
            needs.append(kept)
        trained = self.training(name, recipe, words, needs, "trained.caffemodel")
        measured = nets / f"{LEVELS[level]:03}_train_seg_{level}_anno_make_inference.prototxt"
        folded = self.folded(f"{name}-folded", measured, trained)
        deploy = nets / f"DecoupledNet_{level}_anno_inference_deploy.prototxt"
        return self.scored(name, deploy, folded, options=("--threshold", self.threshold))

    def decouplednet_str(self, level: str) -> Step:
        return self.decouplednet(level, alone=True)

    def deconvnet(self, level: str) -> Step:
        nets, needs = self.nets(level).makes.parent, (self.prepared(), self.nets(level))
        before: list[Step] = []
        for stage in (1, 2):
            name, recipe = f"deconvnet-{level}-{stage}", f"deconvnet-{stage}"
            words = ["-m", "caffe_port.solver", nets / f"stage_{stage}_solver.prototxt"]
            start = before[-1].makes if before else self.init
            words += ["--weights", start] if start else []
            last = f"snapshot_iter_{self.recipe.trainings[recipe].iterations}.caffemodel"
            before.append(self.training(name, recipe, words, (*needs, *before), last))
        measured = nets / "DeconvNet_make_bn_layer_testable.prototxt"
        folded = self.folded(f"deconvnet-{level}-folded", measured, before[-1])
        deploy = nets / "DeconvNet_inference_deploy.prototxt"
        # The release's shift by a pixel is negligible in large pictures, but not in small ones.
        options = ("--proposals", self.recipe.proposals, "--aligned")
        return self.scored(f"deconvnet-{level}", deploy, folded, options=options)

    def wssl(self, level: str) -> Step:
        """Large field of view; at Full there are no weak annotations."""
        nets, name, alone = self.nets(level), f"wssl-{level}", level == lists.FULL
        folder, numbers = nets.makes.parents[1] / "wssl", self.recipe.kept
        solver = f"train_large_fov_{'strong' if alone else 'semi'}_solver.prototxt"
        words = ["-m", "caffe_port.solver", folder / solver]
        last = f"snapshot_iter_{self.recipe.training(name, 'wssl').iterations}.caffemodel"
        needs = [self.prepared(), nets]
        if self.init:
            tail = "" if alone else f"_{level}"
            items = numbers["wssl"] if alone else numbers["wssl-strong"] * int(level) * self.classes
            needs.append(self.kept(f"kept-wssl_strong{tail}", nets, folder / "keep_wssl_strong.prototxt", items))
            if not alone:
                weak = folder / "keep_wssl_weak.prototxt"
                needs.append(self.kept(f"kept-wssl_weak{tail}", nets, weak, numbers["wssl-weak"]))
        trained = self.training(name, "wssl", words, needs, last)
        weights: tuple[Step | str, ...] = (self.init, trained)
        if not self.init:
            weights = (self.folded(f"{name}-folded", folder / "large_fov_make_inference.prototxt", trained),)
        return self.scored(name, folder / "large_fov_deploy.prototxt", *weights, options=("--crf", "deeplab"))
