"""The VOC classification net under DecoupledNet (paper sections 4.1 and 6.1). Its weights were released, its files not.

Layer names are those of ``decouplednet/fp_bp_network.prototxt``, so that weights are copied by name.
"""

from __future__ import annotations

from caffe_port.definitions.decouplednet import SIZE, class_score, resized, score_side
from caffe_port.definitions.definition import Layer, Layers, Net, Note, Setting, Solver, Word
from caffe_port.definitions.layers import NEW, XAVIER, Norm, pooling, sigmoid
from caffe_port.definitions.vgg import encoder, fully_connected, input_size, window
from caffe_port.definitions.voc import KEPT_FILL, kept_data, sgd, voc_data

__all__ = ["files"]


def network(setting: Setting, size: int, norm: Norm | None = None) -> Layers:
    """``data`` to ``cls-score-pooled``, one score for each class. BN, if there is any, replaces dropout."""
    return [*encoder(setting, fill=XAVIER, norm=norm), *head(setting, size, norm)]


def head(setting: Setting, size: int, norm: Norm | None = None) -> Layers:
    """``pool5`` to ``cls-score-pooled``."""
    first = KEPT_FILL if setting.kept else None
    return [
        *fully_connected(setting, side=window(size), drop=norm is None, fill=XAVIER, first=first, norm=norm),
        class_score(setting, NEW._replace(rates=(setting.score_rate, 2 * setting.score_rate))),
        pooling("avg-pool", "cls-score", "cls-score-pooled", "AVE", score_side(size), 1),
    ]


def data(setting: Setting, size: int, split: str, batch: int, phase: str = "") -> Layer:
    return voc_data(
        setting,
        "WINDOW_CLS_DATA",
        ["data", "cls-label"],
        f"{setting.lists('cls_imgset')}/{split}.txt",
        batch=batch,
        resize=resized(size),
        size=size,
        phase=phase,
        vector=True,
    )


def measure(mode: str) -> Layer:
    """The share of labels that are predicted correctly by scores above zero: of all of them, or (Recall) of those
    present."""
    tops = [f"cls-{mode.lower()}"]
    param = {"binary_accuracy_param": {"accuracy_mode": Word(mode)}}
    return Layer("BIN_ACCURACY", tops[0], ["cls-score-pooled", "cls-label"], tops, param, phase="TEST")


TRAIN_NOTES = """\
The VOC classification network (never released; sections 4.1 and 6.1).
The paper gives: VGG-16 trained on ILSVRC, sigmoid cross-entropy, 10582 images with image-level labels, random
crops and mirroring.
The released weights and fp_bp net give: the layers and their names, input of 320 x 320, average pooling of
the scores, ten times the learning rate for cls-score-voc.
Chosen here: dropout, as VGG-16 was trained with it; the labels are the classes that the crop shows; 320
cropped from 350, as in the released segmentation nets; fillers, for when no trained weights are copied.
A line of the list: image mask x1 y1 x2 y2, with the box 0 0 width-1 height-1 for the whole image."""

KEPT_NOTES = """
Here the 13 convolutions stay as they are given: rows of what they make of the training pictures are read. VGG-16's
have a root mean square of 10, so fc6 starts from smaller weights."""

SOLVER_NOTES = """\
The paper gives: SGD with the parameters of DeconvNet (momentum 0.9, decay 0.0005), batches of 64, about 5500
iterations.
Chosen here: 64 as 8 images x 8; base_lr 0.001, with which the new layer learns at DeconvNet's 0.01 and the
trained ones, here without BN, at a tenth; the step of the released solver of the same length (5 annotations)."""


def train(setting: Setting) -> Net:
    """Image-level labels against the average of the scores over all positions."""
    size = input_size(setting, SIZE)
    loss = Layer("SIGMOID_CROSS_ENTROPY_LOSS", "cls-loss", ["cls-score-pooled", "cls-label"], ["cls-loss"])
    if setting.kept:
        rows = kept_data(f"{setting.kept}/kept-{setting.lists('cls')}", ["pool5", "cls-label"], setting.batch or 8)
        return Net("train_cls_voc", [rows, *head(setting, size), loss], about=TRAIN_NOTES + KEPT_NOTES)
    return Net(
        "train_cls_voc",
        [
            data(setting, size, "train", 8, "TRAIN"),
            data(setting, size, "val", 2, "TEST"),
            *network(setting, size, Norm.BATCH if setting.norm else None),
            Note("What is present, and what of it is found; precision would be 0/0 while nothing is"),
            measure("Accuracy"),
            measure("Recall"),
            loss,
        ],
        about=TRAIN_NOTES,
    )


def keep(setting: Setting) -> Net:
    """What the convolutions give for the training pictures, and their labels."""
    size = input_size(setting, SIZE)
    return Net(
        "keep_cls_voc",
        [data(setting, size, "train", 8), *encoder(setting)],
        about="The VOC classification network's convolutions on the training pictures, for keep-features.",
    )


def make_inference(setting: Setting) -> Net:
    """The net trained with BN, whose BN layers output their batch's statistics."""
    size = input_size(setting, SIZE)
    return Net(
        "train_cls_voc_make_inference",
        [data(setting, size, "train", 16), *network(setting, size, Norm.MEASURED)],
        about="The VOC classification network: gives every BN layer's statistics, for fold --absorb to take BN away.",
    )


def deploy(setting: Setting) -> Net:
    """The net for inference on a picture."""
    size = input_size(setting, SIZE)
    return Net(
        "cls_voc_deploy",
        [*network(setting, size), sigmoid("cls-score-sigmoid", "cls-score-pooled", "cls-score-sigmoid")],
        inputs={"data": (1, 3, size, size)},
        about="The VOC classification network for inference: cls-score-sigmoid has a score from 0 to 1 for each class.",
    )


def files(setting: Setting) -> dict[str, Net | Solver]:
    """Every file of the folder."""
    times = {"stepsize": 4000, "max_iter": 5500, "iter_size": 8}
    solver = sgd("train_cls_voc", **times, base_lr=0.001, about=SOLVER_NOTES, tested=not setting.kept)
    others: dict[str, Net | Solver] = {"keep_cls_voc": keep(setting)} if setting.kept else {}
    if setting.norm:
        others["train_cls_voc_make_inference"] = make_inference(setting)
    return others | {
        "train_cls_voc": train(setting),
        "train_cls_voc_solver": solver,
        "cls_voc_deploy": deploy(setting),
    }
