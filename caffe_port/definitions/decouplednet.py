"""DecoupledNet: a classification net, a segmentation net, and the bridging layers between them.

The paper is Hong, Noh and Han, "Decoupled Deep Neural Network for Semi-supervised Semantic Segmentation", 2015; the
sections cited here are of this paper. Facts that it does not give are from the authors' released files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from caffe_port.definitions.definition import Layer, Layers, Learn, Net, Note, Setting, Solver
from caffe_port.definitions.layers import (
    FROZEN,
    NEW,
    SMALL,
    USUAL,
    Norm,
    convolution,
    deconvolution,
    eltwise,
    norm_layer,
    pooling,
    sigmoid,
    unpooling,
)
from caffe_port.definitions.vgg import decoder, encoder, fully_connected, input_size, switch, switches, unit, window
from caffe_port.definitions.voc import kept_data, pixel_accuracy, pixel_loss, sgd, voc_data

__all__ = ["SIZE", "class_score", "files", "resized", "score_side"]

SIZE = 320


@dataclass(frozen=True)
class Level:
    """One level of supervision: strong annotations for each class, and the training that was released for it."""

    name: str
    number: int
    stepsize: int
    max_iter: int


LEVELS = (
    Level("Full", 2, 10000, 17500),
    Level("25", 3, 10000, 15000),
    Level("10", 4, 10000, 7500),
    Level("5", 5, 4000, 5500),
)


def resized(size: int) -> int:
    """The side to which pictures are resized before ``size`` is cropped from them: 350 for 320."""
    return size * 35 // 32


def score_side(size: int) -> int:
    """Height and width of the class scores: pool5's, reduced by fc6's window."""
    return size // 32 - window(size) + 1


def class_score(setting: Setting, learn: Learn) -> Layer:
    """A score of every class at every position."""
    return convolution("cls-score-voc", "fc7", "cls-score", setting.classes, 1, learn=learn, fill=SMALL)


def classifier(
    setting: Setting, size: int, *, learn: Learn, learn_score: Learn, switches: bool = False
) -> Iterator[Layer]:
    """The classification network (section 4.1), with the masks that its backward pass needs."""
    if not setting.kept:
        yield from encoder(setting, learn=learn, switches=switches)
    yield from fully_connected(setting, side=window(size), learn=learn, masks=True)
    yield class_score(setting, learn_score)


def saliency(setting: Setting, size: int, *, learn: Learn, learn_score: Learn, named: bool = True) -> Iterator[Layer]:
    """``cls-score-unpooled`` -> ``pool5-bp``, the derivative of the scores by pool5 (section 4.3, equation 3).

    Back-propagation as forward layers: a convolution's is a deconvolution with the same weights, a ReLU's is a product
    with its mask.
    """
    wide = setting.fc_features(4096)
    yield convolution("cls-score-voc-bp", "cls-score-unpooled", "fc7-bp", wide, 1, learn=learn_score, fill=SMALL)
    for blob, mask, top, outputs, kernel in (
        ("fc7-bp", "relu7-mask", "fc6-bp", wide, 1),
        ("fc6-bp", "relu6-mask", "pool5-bp", setting.features(512), window(size)),
    ):
        yield eltwise(mask if named else "", [blob, mask], blob, "PROD")
        yield deconvolution(blob, blob, top, outputs, kernel, learn=learn)


def bridge(setting: Setting, size: int, norm: Norm) -> Iterator[Layer]:
    """pool5 and pool5-bp -> fc7-seg, the class-specific activation map (section 4.3)."""
    for blob in ("pool5", "pool5-bp"):
        yield norm_layer(f"{blob}-bn", blob, f"{blob}-bn", norm)
    yield Layer("CONCAT", "pool5-concat", ["pool5-bn", "pool5-bp-bn"], ["pool5-concat"])
    for bottom, number, kernel in (("pool5-concat", 6, window(size)), ("fc6-seg", 7, 1)):
        name = f"fc{number}-seg"
        layer = convolution(name, bottom, name, setting.decoder_features(2048), kernel, fill=SMALL)
        yield from unit(layer, f"bn{name}", f"relu{number}-seg", norm)


def max_score(side: int) -> Iterator[Layer]:
    """The scores' maxima over all positions with their switches; the layers' names contain "avg", as released."""
    yield pooling("avg-pool", "cls-score", "cls-score-pooled", "MAX", side, 1, "score-pool-mask")
    yield sigmoid("cls-score-sigmoid", "cls-score-pooled", "cls-score-sigmoid")


def segmentation(setting: Setting, size: int, norm: Norm, selection: Layers) -> Layers:
    """The net from ``data`` to ``seg-score``; ``selection`` computes ``cls-score-masked`` from ``cls-score``."""
    side = score_side(size)
    return [
        Note("Classification network (section 4.1), trained before and frozen here"),
        *classifier(setting, size, learn=FROZEN, learn_score=FROZEN, switches=True),
        Note("The scores of the selected classes, put back where they came from"),
        *selection,
        unpooling("avg-unpool", "cls-score-masked", "cls-score-unpooled", "MAX", side, 1, side, "score-pool-mask"),
        Note("Class-specific saliency (section 4.3, equation 3)"),
        *saliency(setting, size, learn=FROZEN, learn_score=FROZEN),
        Note("Bridging layers (section 4.3)"),
        *bridge(setting, size, norm),
        Note("Segmentation network (section 4.2)"),
        *decoder(setting, "fc7-seg", size, 2, norm),
    ]


def by_label(side: int) -> Layers:
    """Training selects the classes by their labels."""
    mask = eltwise("cls-score-mask", ["cls-score-sigmoid", "cls-label"], "cls-score-masked", "PROD")
    return [*max_score(side), mask]


def by_caller(side: int) -> Layers:
    """Inference reads the average's sigmoid and feeds ``cls-score-masked`` itself, class by class."""
    return [
        pooling("avg-pool", "cls-score", "cls-score-avg-pooled", "AVE", side, 1),
        sigmoid("cls-score-sigmoid", "cls-score-avg-pooled", "cls-score-avg-sigmoid"),
        *max_score(side),
    ]


def fp_bp(setting: Setting) -> Net:
    """The classification network and its backward pass, into which its trained weights are converted."""
    setting = replace(setting, kept="")
    size = input_size(setting, SIZE)
    side = score_side(size)
    return Net(
        "fp_bp_network",
        [
            *classifier(setting, size, learn=USUAL, learn_score=NEW),
            pooling("avg-pool", "cls-score", "cls-score-pooled", "AVE", side, 1),
            unpooling("avg-unpool", "cls-score-pooled", "cls-score-unpooled", "AVE", side, 1, side),
            Note("Class-specific saliency (section 4.3, equation 3)"),
            *saliency(setting, size, learn=USUAL, learn_score=NEW, named=False),
        ],
        inputs={"data": (1, 3, size, size)},
        force_backward=True,
        about="The classification network with its backward pass as layers (section 4.3).",
    )


def train_data(setting: Setting, level: Level, size: int, split: str, batch: int, phase: str = "") -> Layer:
    """Combinatorial crops (section 5): pictures, the mask of the selected classes against the rest, their labels."""
    return voc_data(
        setting,
        "SELECT_SEG_BINARY",
        ["data", "seg-label", "cls-label"],
        f"seg_imgset_{level.name}/{split}.txt",
        batch=batch,
        resize=resized(size),
        size=size,
        phase=phase,
        vector=True,
    )


def kept_rows(setting: Setting, level: Level, batch: int) -> Layer:
    """The same with what the convolutions give in place of pictures."""
    blobs = ["pool5", *(switch(setting, stage) for stage in range(1, 6)), "seg-label", "cls-label"]
    return kept_data(f"{setting.kept}/kept-seg_{level.name}", blobs, setting.batch or batch)


def keep(setting: Setting, level: Level) -> Net:
    """What the convolutions give for the training crops, with masks and labels."""
    size = input_size(setting, SIZE)
    narrowed = [layer for stage in range(1, 6) for layer in switches(setting, stage)]
    return Net(
        f"keep_seg_{level.name}_anno",
        [train_data(setting, level, size, "train", 4), *encoder(setting, switches=True), *narrowed],
        about=f"DecoupledNet, {level.name} annotations: its convolutions on the training crops, for keep-features.",
    )


def train(setting: Setting, level: Level) -> Net:
    """Bridge and segmentation network learn from masks of selected classes; the classification network is frozen."""
    size = input_size(setting, SIZE)
    tested = [train_data(setting, level, size, "train", 4, "TRAIN"), train_data(setting, level, size, "val", 2, "TEST")]
    return Net(
        f"train_seg_{level.name}_anno",
        [
            *([kept_rows(setting, level, 4)] if setting.kept else tested),
            *segmentation(setting, size, Norm.BATCH, by_label(score_side(size))),
            pixel_accuracy("TEST"),
            pixel_loss(),
        ],
        about=f"DecoupledNet, training the segmentation network: {level.name} annotations (sections 5 and 6.1).",
    )


def make_inference(setting: Setting, level: Level) -> Net:
    """The trained net whose BN layers output their batch's statistics."""
    size = input_size(setting, SIZE)
    return Net(
        f"train_seg_{level.name}_anno_make_inference",
        [
            kept_rows(setting, level, 16) if setting.kept else train_data(setting, level, size, "train", 16),
            *segmentation(setting, size, Norm.MEASURED, by_label(score_side(size))),
        ],
        about=f"DecoupledNet, {level.name} annotations: gives every BN layer's statistics, to be folded into it.",
    )


DEPLOY_NOTES = """\
DecoupledNet, {level} annotations, for inference (section 4.3).
Pass 1, zeros in cls-score-masked: the scores of the classes, cls-score-avg-sigmoid. Pass 2, those above 0.5:
background, channel 0 of seg-score. Then a pass with each of them alone: its foreground, channel 1."""


def deploy(setting: Setting, level: Level) -> Net:
    """The net with folded BN, for inference."""
    setting = replace(setting, kept="")
    size = input_size(setting, SIZE)
    return Net(
        f"DecoupledNet_{level.name}_anno_inference_deploy",
        list(segmentation(setting, size, Norm.FOLDED, by_caller(score_side(size)))),
        inputs={"data": (1, 3, size, size), "cls-score-masked": (1, setting.classes, 1, 1)},
        about=DEPLOY_NOTES.format(level=level.name),
    )


def files(setting: Setting) -> dict[str, Net | Solver]:
    """Every file of the folder, by its released name."""
    written: dict[str, Net | Solver] = {"fp_bp_network": fp_bp(setting)}
    for level in LEVELS:
        name = f"{level.number:03}_train_seg_{level.name}_anno"
        written[name] = train(setting, level)
        written[f"{name}_solver"] = sgd(
            name,
            stepsize=level.stepsize,
            max_iter=level.max_iter,
            iter_size=16,
            about="Batches of 4 images, 16 to an iteration, are the 64 of section 6.1.",
            tested=not setting.kept,
        )
        if setting.kept:
            written[f"{level.number:03}_keep_seg_{level.name}_anno"] = keep(setting, level)
        written[f"{name}_make_inference"] = make_inference(setting, level)
        written[f"DecoupledNet_{level.name}_anno_inference_deploy"] = deploy(setting, level)
    return written
