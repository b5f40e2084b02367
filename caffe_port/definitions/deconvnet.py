"""DeconvNet: VGG-16 and its mirror image, each layer followed by BN.

The paper is Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", 2015. Training goes in two
stages: crops around one object, then crops of object proposals.
"""

from __future__ import annotations

from dataclasses import replace

from caffe_port.definitions.definition import Layer, Layers, Net, Setting, Solver
from caffe_port.definitions.layers import XAVIER, Norm
from caffe_port.definitions.vgg import decoder, encoder, fully_connected, input_size, window
from caffe_port.definitions.voc import pixel_accuracy, pixel_loss, sgd, voc_data

__all__ = ["files"]

SIZE = 224
READERS = {1: "IMAGE_SEG_DATA", 2: "WINDOW_SEG_DATA"}
"""The data layer of each stage."""


def resized(size: int) -> int:
    """The side to which pictures are resized before ``size`` is cropped from them: 250 for 224."""
    return size * 250 // 224


def network(setting: Setting, size: int, norm: Norm) -> Layers:
    """``data`` to ``seg-score``.

    As published, the first half has no fillers, because VGG-16's weights replace them: without these the weights stay
    0. With a width of their own fc6 and fc7 have them.
    """
    fill = XAVIER if setting.norm else None
    fc_fill = XAVIER if setting.fc_width else fill
    return [
        *encoder(setting, norm=norm, switches=True, fill=fill),
        *fully_connected(setting, side=window(size), norm=norm, fill=fc_fill),
        *decoder(setting, "fc7", size, 1 + setting.classes, norm),
    ]


def data(setting: Setting, stage: int, split: str, *, batch: int, resize: int, size: int, phase: str = "") -> Layer:
    return voc_data(
        setting,
        READERS[stage],
        ["data", "seg-label"],
        f"{setting.lists(f'stage_{stage}_train_imgset')}/{split}.txt",
        batch=batch,
        resize=resize,
        size=size,
        phase=phase,
    )


def train(setting: Setting, stage: int) -> Net:
    """Stage 1 reads pictures of one object, stage 2 crops the boxes of its list from whole ones."""
    size = input_size(setting, SIZE)
    test_resize = resized(size) if stage == 1 else size
    return Net(
        {1: "stage_1_training", 2: "stage_2_train"}[stage],
        [
            data(setting, stage, "train", batch=8, resize=resized(size), size=size, phase="TRAIN"),
            data(setting, stage, "val", batch=8, resize=test_resize, size=size, phase="TEST"),
            *network(setting, size, Norm.BATCH),
            pixel_accuracy("TEST"),
            pixel_loss(),
        ],
        about=f"DeconvNet, stage {stage} of training.",
    )


def make_testable(setting: Setting) -> Net:
    """The trained net whose BN layers output their batch's statistics."""
    size = input_size(setting, SIZE)
    return Net(
        "DeconvNet_make_bn_layer_testable",
        [
            data(setting, 2, "train", batch=28, resize=resized(size), size=size),
            *network(setting, size, Norm.MEASURED),
        ],
        about="DeconvNet: gives every BN layer's statistics, to be folded into it.",
    )


def test(setting: Setting) -> Net:
    """The net with folded BN and an accuracy layer."""
    size = input_size(setting, SIZE)
    return Net(
        "DeconvNet_inference_test.prototxt",
        [
            data(setting, 2, "val", batch=32, resize=size, size=size),
            *network(setting, size, Norm.FOLDED),
            pixel_accuracy(),
        ],
        about="DeconvNet with folded BN, measured on the validation crops of stage 2.",
    )


def deploy(setting: Setting) -> Net:
    """The net with folded BN, for inference."""
    size = input_size(setting, SIZE)
    return Net(
        "DeconvNet_inference_deploy",
        list(network(setting, size, Norm.FOLDED)),
        inputs={"data": (1, 3, size, size)},
        about="DeconvNet for inference: seg-score has background and the 20 classes.",
    )


def solver(stage: int, stepsize: int, max_iter: int) -> Solver:
    about = "Batches of 8 images, 8 to an iteration, are the 64 of the paper."
    return sgd(f"stage_{stage}_train", stepsize=stepsize, max_iter=max_iter, iter_size=8, about=about)


def files(setting: Setting) -> dict[str, Net | Solver]:
    """Every file of the folder, by its released name."""
    setting = replace(setting, kept="")  # its first half learns
    return {
        "stage_1_train": train(setting, 1),
        "stage_1_solver": solver(1, 9000, 20000),
        "stage_2_train": train(setting, 2),
        "stage_2_solver": solver(2, 10000, 40000),
        "DeconvNet_make_bn_layer_testable": make_testable(setting),
        "DeconvNet_inference_test": test(setting),
        "DeconvNet_inference_deploy": deploy(setting),
    }
