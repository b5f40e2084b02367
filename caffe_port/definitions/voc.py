"""Shared by all trainings on PASCAL VOC: data layers, accuracy and loss, solver."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.definitions.definition import Fields, Layer, Setting, Solver, Word

__all__ = ["KEPT_FILL", "kept_data", "pixel_accuracy", "pixel_loss", "sgd", "voc_data"]

MEAN = (104.008, 116.669, 122.675)
"""Of blue, green and red, as in the released training definitions."""

KEPT_FILL = {"weight_filler": {"type": "gaussian", "std": 0.001}, "bias_filler": {"type": "constant", "value": 0}}
"""Of fc6 on VGG-16's pool5, whose root mean square is 10: it starts with values around 1."""


def voc_data(
    setting: Setting,
    type: str,
    tops: Sequence[str],
    source: str,
    *,
    batch: int,
    resize: int,
    size: int,
    phase: str = "",
    vector: bool = False,
) -> Layer:
    """Pictures and masks of a list: resized to a square, cropped to ``size``, mirrored, the mean subtracted.

    Args:
        vector: whether there is a top with a vector of classes.
    """
    params: dict[str, Fields] = {
        "image_data_param": {
            "root_folder": f"{setting.data_root}/VOC2012",
            "source": f"{setting.data_root}/{source}",
            "label_type": Word("PIXEL"),
            "batch_size": setting.batch or batch,
            "shuffle": True,
            "new_width": resize,
            "new_height": resize,
        },
        "transform_param": {"mean_value": list(MEAN), "crop_size": size, "mirror": True},
    }
    if vector:
        params["window_cls_data_param"] = {"label_dim": setting.classes}
    return Layer(type, "data", [], tops, params, phase=phase)


def kept_data(folder: str, tops: Sequence[str], batch: int) -> Layer:
    """What ``keep-features`` wrote: rows of HDF5 files, in another order in every round."""
    param = {"hdf5_data_param": {"source": f"{folder}/list.txt", "batch_size": batch, "shuffle": True}}
    return Layer("HDF5_DATA", "data", [], tops, param)


def pixel_accuracy(phase: str = "") -> Layer:
    """The share of correct pixels among the labelled ones; pixels with label 255 are ignored."""
    param = {"eltwise_accuracy_param": {"ignore_label": 255}}
    return Layer("ELTWISE_ACCURACY", "seg-accuracy", ["seg-score", "seg-label"], ["seg-accuracy"], param, phase=phase)


def pixel_loss() -> Layer:
    """Softmax loss, the mean over labelled pixels."""
    param = {"loss_param": {"ignore_label": 255}}
    return Layer("SOFTMAX_LOSS", "seg-loss", ["seg-score", "seg-label"], ["seg-loss"], param)


def sgd(
    net: str,
    *,
    stepsize: int,
    max_iter: int,
    iter_size: int,
    base_lr: float = 0.01,
    about: str = "",
    tested: bool = True,
) -> Solver:
    """Stochastic gradient descent with momentum, as in DeconvNet's paper, for the net in ``NET.prototxt``.

    Args:
        tested: whether the net has data for tests.
    """
    tests = {"test_interval": 500, "test_iter": 1000} if tested else {}
    return Solver(
        {
            "net": f"./{net}.prototxt",
            "base_lr": base_lr,
            "lr_policy": "step",
            "gamma": 0.1,
            "stepsize": stepsize,
            "iter_size": iter_size,
            "display": 1,
            "max_iter": max_iter,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            **tests,
            "snapshot": 500,
            "snapshot_prefix": f"./snapshot/{net}",
            "solver_mode": Word("GPU"),
        },
        about=about,
    )
