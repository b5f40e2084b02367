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
            the iterations.
    """

    iterations: int
    rate: float
    stepped: float = 0.7
    passes: int = 1

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
        }


@dataclass(frozen=True)
class Recipe:
    """The setting of all cells of a table.

    Attributes:
        width: of every net relative to the published ones. size: of the nets' inputs. batch: images in one; WSSL has
            as many weak ones as strong ones.
        crops: for each subset of a picture's classes. proposals: of DeconvNet, for training and for each picture.
        passes: over which BN's statistics are averaged, of 16 images.
        fc_width, decoder_width: of fc6 and fc7, and of the segmentation half; "" for ``width``.
        kept: with VGG-16's convolutions, the number of pictures or crops for which their results are kept: by
            "classifier", "classifier-str" (for each class and strong annotation), "decouplednet".
        trainings: by name: "classifier", "classifier-str", "decouplednet", "decouplednet-str", "deconvnet-1",
            "deconvnet-2", "wssl".
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


_WITHOUT_NORM = {
    "classifier": Training(1500, 0.0003, 0.8, passes=4),
    "classifier-str": Training(400, 0.0003, 0.8, passes=4),
    "wssl": Training(120, 0.001),
}
"""Without BN. VGG-16's pool5 has a root mean square of ten: at the released solver's rates the classification net's
loss becomes NaN. WSSL's rate is its released one."""

RECIPES = {
    "demo": Recipe("1/8", 64, 16, 10, 10, 10, _trainings(400, 100, 300, 100, 100, 100, 50)),
    "quick": Recipe("1/8", 64, 16, 10, 10, 10, _trainings(600, 200, 200, 200, 100, 300, 100)),
    "full": Recipe("1/8", 96, 16, 40, 20, 40, _trainings(3000, 500, 600, 500, 300, 500, 240)),
    "init": Recipe(
        "1",
        160,
        16,
        40,
        20,
        40,
        _trainings(3000, 1000, 600, 600, 120, 120, 120) | _WITHOUT_NORM,
        fc_width="1/4",
        decoder_width="1/4",
        kept={"classifier": 4080, "classifier-str": 8, "decouplednet": 3200},
    ),
}
