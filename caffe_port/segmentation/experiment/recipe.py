"""Sizes of an experiment's nets, and lengths of their trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["RECIPES", "Recipe", "Training"]


@dataclass(frozen=True)
class Training:
    """Settings of a training that replace those of its released solver.

    Attributes:
        iterations: of ``passes`` batches each. rate: the initial rate; a tenth of it after the share ``stepped`` of
            the iterations. type: the solver's; "" for the released one's, SGD. dialect: the Caffe that has it, if the
            nets' own does not.
    """

    iterations: int
    rate: float
    stepped: float = 0.7
    passes: int = 1
    type: str = ""
    dialect: str = ""

    def settings(self, seed: int) -> dict[str, object]:
        """Fields of a SolverParameter.

        One pass an iteration where there is BN, because the fork's learns only from the last pass (docs/nets.md). Test
        nets do not run: scores are computed at the end, from masks.
        """
        return {
            "max_iter": self.iterations,
            "base_lr": self.rate,
            "stepsize": max(1, round(self.iterations * self.stepped)),
            "iter_size": self.passes,
            "snapshot": max(1, self.iterations // 4),
            "display": max(1, self.iterations // 100),
            "average_loss": max(1, self.iterations // 100),
            "test_interval": self.iterations + 1,
            "test_initialization": "false",
            "random_seed": seed,
            **({"type": self.type} if self.type else {}),
        }


@dataclass(frozen=True)
class Recipe:
    """The setting of all cells of a table.

    Attributes:
        width: of every net relative to the published ones. size: of the nets' inputs. batch: images in one; WSSL has
            as many weak ones as strong ones.
        crops: for each subset of a picture's classes. proposals: of DeconvNet, for training and for each picture; 0
            for no lists for it.
        passes: over which BN's statistics are averaged, of 16 images.
        fc_width, decoder_width: of fc6 and fc7, and of the segmentation half; "" for ``width``.
        kept: with VGG-16's convolutions, the number of pictures or crops for which their results are kept: by
            "classifier", "decouplednet", "wssl" (at Full), "wssl-weak"; for each class and strong annotation by
            "classifier-str", "wssl-strong".
        score_rate: the factor on the rate of the classification net's scores.
        square: whether the classification net learns from pictures made square as for inference, or squashed.
        trainings: by name: "classifier", "classifier-str", "decouplednet", "decouplednet-str", "deconvnet-1",
            "deconvnet-2", "wssl"; "classifier-str-10" or the like for one level.
    """

    width: str
    size: int
    batch: int
    crops: int
    proposals: int
    passes: int
    trainings: Mapping[str, Training] = field(default_factory=dict)
    fc_width: str = ""
    decoder_width: str = ""
    kept: Mapping[str, int] = field(default_factory=dict)
    score_rate: int = 10
    square: bool = False

    def training(self, name: str, kind: str) -> Training:
        """That of one step, if there is one, or of all of its kind."""
        return self.trainings.get(name, self.trainings[kind])

    @property
    def untrained(self) -> Recipe:
        """The same with trainings that change nothing."""
        return replace(self, trainings={name: Training(1, 0.0) for name in self.trainings})

    def longer(self, factor: float) -> Recipe:
        """The same with ``factor`` times as many iterations everywhere."""
        longer = {
            name: replace(it, iterations=max(4, round(it.iterations * factor / 4) * 4))
            for name, it in self.trainings.items()
        }
        return replace(self, trainings=longer)


_NAMES = ("classifier", "classifier-str", "decouplednet", "decouplednet-str", "deconvnet-1", "deconvnet-2", "wssl")


def _trainings(*iterations: int) -> dict[str, Training]:
    """Rates are those of the released solvers; that of the classification net, whose last layer has ten times as much,
    is a tenth."""
    named = zip(_NAMES, iterations, strict=True)
    return {name: Training(n, 0.001 if name.startswith("classifier") else 0.01) for name, n in named}


def _on_pool5(iterations: int, rate: float = 0.00003) -> Training:
    return Training(iterations, rate, 0.8, passes=4, type="Adam", dialect="bvlc")


def _wssl(iterations: int) -> Training:
    return Training(iterations, 0.0002, 0.8, type="Adam", dialect="mixed")


_WITHOUT_NORM = {
    "classifier": _on_pool5(560, 0.00005),
    "classifier-str": _on_pool5(80),
    "classifier-str-10": _on_pool5(160),
    "classifier-str-25": _on_pool5(400),
    "wssl": _wssl(400),
    "wssl-Full": _wssl(800),
}
"""Without BN. The classification net learns on VGG-16's pool5, whose root mean square is ten: with SGD at the released
rates its loss becomes NaN, and at lower ones its mAP is 7 to 10 below Adam's. From strong pictures alone, it learns
for six rounds of what is kept, before it overfits. WSSL, trained whole by its released solver for 120 iterations, finds
the background alone; at Full, without weak images, its batches have half as many."""

_DEMO = {"classifier": Training(140, 0.0003, type="Adam", dialect="mixed"), "decouplednet": Training(280, 0.01)}
"""From the shipped weights."""

_DEMO_WEIGHTS = {
    "classifier": Training(900, 0.001, 5 / 6, type="Adam", dialect="mixed"),
    "decouplednet": Training(600, 0.01, 0.8),
}
"""From fillers. All layers of the classification net are new, and have BN: Adam learns in 100 iterations what AdaGrad
does in 300, if the scores' rate is not ten times that of the others; with it the loss rises first."""

RECIPES = {
    "demo": Recipe("1/8", 64, 16, 10, 0, 10, _DEMO),
    "demo-weights": Recipe("1/8", 64, 16, 4, 0, 20, _DEMO_WEIGHTS, score_rate=1),
    "quick": Recipe("1/8", 64, 16, 10, 10, 10, _trainings(600, 200, 200, 200, 100, 300, 100)),
    "full": Recipe("1/8", 96, 16, 40, 20, 40, _trainings(3000, 500, 600, 500, 300, 500, 240)),
    "init": Recipe(
        "1",
        160,
        16,
        40,
        20,
        40,
        _trainings(400, 80, 400, 400, 120, 120, 120) | _WITHOUT_NORM,
        fc_width="1/4",
        decoder_width="1/4",
        kept={
            "classifier": 8160,
            "classifier-str": 8,
            "decouplednet": 3200,
            "wssl": 4080,
            "wssl-strong": 4,
            "wssl-weak": 2048,
        },
        square=True,
    ),
}
