"""WSSL: DeepLab-VGG16 trained by EM from a few masks and many image-level labels; small and large field of view.

The papers are Papandreou, Chen, Murphy and Yuille, "Weakly- and Semi-Supervised Learning of a DCNN for Semantic Image
Segmentation", ICCV 2015, and Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015. Layer names are those of the released DeepLab models, so that their weights are copied by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from caffe_port.definitions.definition import Layer, Layers, Net, Note, Setting, Solver, Word
from caffe_port.definitions.layers import NEW, SMALL, USUAL, XAVIER, Norm, convolution, dropout, pooling
from caffe_port.definitions.vgg import STAGES, unit
from caffe_port.definitions.voc import KEPT_FILL, MEAN, kept_data, pixel_accuracy, pixel_loss, sgd
from caffe_port.errors import ShapeError

__all__ = ["FOVS", "FoV", "crop_size", "deploy", "files", "make_inference", "network", "semi", "strong"]

SIZE, STRIDE = 321, 8
"""Of the crops, and from score to score."""
STRONG, WEAK, TESTED = 5, 15, 2
"""Images of a batch."""
LEVEL = "25"
"""Strong annotations for each class, if the setting has none."""
NEW_LAYER: dict[str, Any] = {"learn": USUAL, "fill": XAVIER}


@dataclass(frozen=True)
class FoV:
    """The field of view of a score."""

    name: str
    window: dict[str, Any]
    """Of fc6."""
    features: int
    """Of fc6 and fc7."""
    averaged: bool
    """Whether a 3 x 3 mean precedes fc6."""


FOVS = {
    "small": FoV("small", {"kernel": 4, "pad": 6, "dilation": 4}, features=4096, averaged=False),
    "large": FoV("large", {"kernel": 3, "pad": 12, "dilation": 12}, features=1024, averaged=True),
}


def crop_size(setting: Setting) -> int:
    """The side of the crops: the setting's, one more if that is a multiple of 8; else 321.

    Raises:
        ShapeError: it is neither 8 k nor 8 k + 1, so that no score would coincide with the crop's last pixels.
    """
    size = setting.size or SIZE
    size += size % STRIDE == 0
    if size % STRIDE != 1 or size < 49:
        raise ShapeError(
            "--input-size", str(setting.size), expected="a multiple of 8 or one more, at least 48, for this net"
        )
    return size


def network(setting: Setting, fov: FoV, norm: Norm | None = None) -> Iterator[Layer]:
    """``data`` to ``seg-score``: VGG-16 whose last two poolings have stride 1, followed by dilated layers.

    With ``norm`` BN follows each convolution but the last, and replaces dropout.
    """
    yield from encoder(setting, norm)
    yield from head(setting, fov, norm)


def encoder(setting: Setting, norm: Norm | None = None) -> Iterator[Layer]:
    """``data`` to ``pool5``."""
    bottom = "data"
    for stage, (width, depth) in enumerate(STAGES, 1):
        hole = 2 if stage == 5 else 1
        for step in range(1, depth + 1):
            at = f"{stage}_{step}"
            conv = f"conv{at}"
            layer = convolution(conv, bottom, conv, setting.features(width), 3, pad=hole, dilation=hole, **NEW_LAYER)
            yield from unit(layer, f"bn{at}", f"relu{at}", norm)
            bottom = conv
        pool = f"pool{stage}"
        yield pooling(pool, bottom, pool, "MAX", 3, 2 if stage < 4 else 1, pad=1)
        bottom = pool


def head(setting: Setting, fov: FoV, norm: Norm | None = None, bottom: str = "pool5") -> Iterator[Layer]:
    """The last pooling of the convolutions to ``seg-score``."""
    new = {**NEW_LAYER, "fill": KEPT_FILL} if setting.kept else NEW_LAYER
    if fov.averaged:
        yield pooling("pool5a", bottom, "pool5a", "AVE", 3, 1, pad=1)
        bottom = "pool5a"
    point: dict[str, Any] = {"kernel": 1}
    for number, window in ((6, fov.window), (7, point)):
        fc = f"fc{number}"
        like = new if number == 6 else NEW_LAYER
        layer = convolution(fc, bottom, fc, setting.fc_features(fov.features), **window, **like)
        yield from unit(layer, f"bn{fc}", f"relu{number}", norm)
        if not norm:
            yield dropout(f"drop{number}", fc)
        bottom = fc
    yield convolution("fc8_voc12", bottom, "seg-score", 1 + setting.classes, 1, learn=NEW, fill=SMALL)


def leveled(setting: Setting) -> Setting:
    """The setting, with a level of strong annotation."""
    return setting if setting.level else replace(setting, level=LEVEL)


def data(setting: Setting, name: str, tops: list[str], folder: str, batch: int, phase: str = "") -> Layer:
    """Pictures without resizing, padded with the mean where they are too small, cropped and mirrored."""
    image = {
        "root_folder": f"{setting.data_root}/VOC2012",
        "source": f"{setting.data_root}/{folder}/{'val' if phase == 'TEST' else 'train'}.txt",
        "label_type": Word("PIXEL"),
        "batch_size": setting.batch or batch,
        "shuffle": True,
    }
    transform = {"mean_value": list(MEAN), "crop_size": crop_size(setting), "mirror": True}
    params = {"image_data_param": image, "transform_param": transform}
    return Layer("IMAGE_SEG_DATA", name, [], tops, params, phase=phase)


def in_training(type: str, bottoms: list[str], tops: list[str], block: str, **param: Any) -> Layer:
    """A layer of the training phase, named after its first top."""
    return Layer(type, tops[0], bottoms, tops, {block: param}, phase="TRAIN")


def mixed(setting: Setting) -> Layers:
    """``data``: strong images, with masks in ``seg-label``, then weak ones with labels in ``weak-label``."""
    strong, weak = setting.lists("wssl_strong_imgset"), setting.lists("wssl_weak_imgset")
    return [
        data(setting, "strong-data", ["strong-data", "seg-label"], strong, STRONG, "TRAIN"),
        data(setting, "weak-data", ["weak-data", "weak-label"], weak, WEAK, "TRAIN"),
        in_training("CONCAT", ["strong-data", "weak-data"], ["data"], "concat_param", concat_dim=0),
    ]


def kept_mixed(setting: Setting) -> Layers:
    """``kept``: what the convolutions gave for strong images, with ``seg-label-8``, and weak ones, with
    ``weak-labels``."""
    strong, weak = (f"{setting.kept}/kept-{setting.lists(name)}" for name in ("wssl_strong", "wssl_weak"))
    return [
        replace(kept_data(strong, ["pool5", "seg-label-8"], setting.batch or STRONG), name="strong-data"),
        replace(kept_data(weak, ["weak-pool5", "weak-labels"], setting.batch or WEAK), name="weak-data"),
        in_training("CONCAT", ["pool5", "weak-pool5"], ["kept"], "concat_param", concat_dim=0),
    ]


def keep_strong(setting: Setting) -> Net:
    """What the convolutions give for strong images, and the labels of the pixels that are scored."""
    images = setting.lists("wssl_strong_imgset")
    return Net(
        "keep_wssl_strong",
        [data(setting, "data", ["data", "seg-label"], images, STRONG + WEAK), *encoder(setting), scored_labels()],
        about="WSSL's convolutions on strong images, for keep-features.",
    )


def keep_weak(setting: Setting) -> Net:
    """What the convolutions give for weak images, and their labels."""
    images = setting.lists("wssl_weak_imgset")
    layers = list(encoder(setting))
    layers[-1] = replace(layers[-1], tops=("weak-pool5",))
    return Net(
        "keep_wssl_weak",
        [data(setting, "data", ["data", "weak-label"], images, WEAK), *layers, unique_labels(setting)],
        about="WSSL's convolutions on weak images, for keep-features.",
    )


def scored_labels() -> Layer:
    """The labels of the pixels that are scored."""
    return pooling("seg-label-8", "seg-label", "seg-label-8", "MAX", 1, STRIDE)


def unique_labels(setting: Setting) -> Layer:
    """The labels that an image has."""
    unique = {"max_labels": 1 + setting.classes, "ignore_label": [255], "force_label": [0]}
    return in_training("UNIQUE_LABEL", ["weak-label"], ["weak-labels"], "unique_label_param", **unique)


def tested(setting: Setting) -> Layer:
    return data(setting, "data", ["data", "seg-label"], setting.lists("wssl_strong_imgset"), TESTED, "TEST")


def body(setting: Setting, fov: FoV) -> Layers:
    """The net to be trained, and the labels of the pixels that it scores."""
    return [
        *network(setting, fov, Norm.BATCH if setting.norm else None),
        scored_labels(),
    ]


def estimated(setting: Setting) -> Layers:
    """``seg-score``, ``seg-label-8`` and ``weak-labels`` to ``label``, of all pixels scored of the whole batch."""
    slice_param = {"slice_dim": 0, "slice_point": [setting.batch or STRONG]}
    adaptive = {"num_iter": 5, "bg_portion": 0.4, "fg_portion": 0.2, "suppress_others": True, "margin_others": 1e-5}
    scores, labels = ["strong-score", "weak-score"], ["seg-label-8", "estimated-label"]
    return [
        Note("E-step: the labels that a weak image has are raised until each wins its portion; a pixel's is the best"),
        in_training("SLICE", ["seg-score"], scores, "slice_param", **slice_param),
        *([] if setting.kept else [unique_labels(setting)]),
        in_training(
            "ADAPTIVE_BIAS_CHANNEL",
            ["weak-score", "weak-labels"],
            ["biased-score"],
            "adaptive_bias_channel_param",
            **adaptive,
        ),
        in_training("ARGMAX", ["biased-score"], ["estimated-label"], "argmax_param", axis=1),
        Note("M-step: one loss over both kinds of images"),
        in_training("CONCAT", labels, ["label"], "concat_param", concat_dim=0),
    ]


def measures(scores: str, labels: str, phase: str = "") -> Layers:
    """The accuracy of ``scores``, and the loss: over ``labels``, of weak images too."""
    return [
        replace(pixel_accuracy(), bottoms=(scores, "seg-label-8"), phase=phase),
        replace(pixel_loss(), bottoms=("seg-score", labels), phase=phase),
    ]


RELEASED = """\
WSSL: DeepLab-VGG16, {fov} field of view.
Released (deeplab-public, DeepLab-Weak-EM-Adapt and DeepLab-LargeFOV): the layers, their names and sizes, 3 x 3
poolings, crops of 321 = 8 * 40 + 1 pixels, so that scores lie on every eighth one; learning rates; the filler of
fc8; batches of 20. Its hole is dilation here; its INTERP that shrinks labels by 8 is a 1 x 1 pooling.
Chosen here: fillers of the other layers, for when no trained weights are copied."""

MIXED = """
Trained by EM from few strong images and many with image-level labels.
The paper gives: a fixed share of strong images in every batch; an E-step in which the background wins 40 % of a weak
image and each of its classes 20 %, in 5 rounds. Released: labels that an image lacks are put below the others; the
E-step also labels what fills up a small image.
Chosen here: 5 strong and 15 weak images; one loss, in which each pixel counts the same; weak images are those of
the training set that are not strong, and their labels are the whole image's (the released net takes the crop's).
In training seg-accuracy is that of the strong images."""

KEPT = """
Here the convolutions stay as they are given, as in the classification network: rows of what they make of the images
are read."""

SOLVER_NOTES = """\
The released solver of DeepLab-Weak-EM-Adapt.
Chosen here: tests and snapshots, as in the other solvers here."""

DEPLOY_NOTES = """\
WSSL: DeepLab-VGG16, {fov} field of view, for inference on pictures of any size.
seg-score has background and classes at the pixels 0, 8, 16, ...: along an axis of n pixels m = ceil((n - 1) / 8) + 1
of them. For all pixels resize bilinearly, corners onto corners, to 8 (m - 1) + 1, and cut off what is beyond n."""


def semi(setting: Setting, fov: FoV) -> Net:
    """Trained on the strong images of the setting's level, and on the labels of all others."""
    setting = leveled(setting)
    if setting.kept:
        read: Layers = [*kept_mixed(setting), *head(setting, fov, bottom="kept")]
    else:
        read = [*mixed(setting), tested(setting), *body(setting, fov)]
    return Net(
        f"train_{fov.name}_fov_semi",
        [
            *read,
            *estimated(setting),
            *measures("strong-score", "label", "TRAIN"),
            *([] if setting.kept else measures("seg-score", "seg-label-8", "TEST")),
        ],
        about=RELEASED.format(fov=fov.name) + MIXED + KEPT * bool(setting.kept),
    )


def strong(setting: Setting, fov: FoV) -> Net:
    """Trained only on strong images."""
    if setting.kept:
        rows = f"{setting.kept}/kept-{setting.lists('wssl_strong')}"
        read: Layers = [kept_data(rows, ["pool5", "seg-label-8"], setting.batch or STRONG + WEAK), *head(setting, fov)]
    else:
        images = setting.lists("wssl_strong_imgset")
        shown = data(setting, "data", ["data", "seg-label"], images, STRONG + WEAK, "TRAIN")
        read = [shown, tested(setting), *body(setting, fov)]
    return Net(
        f"train_{fov.name}_fov_strong",
        [*read, *measures("seg-score", "seg-label-8")],
        about=RELEASED.format(fov=fov.name) + KEPT * bool(setting.kept),
    )


def make_inference(setting: Setting, fov: FoV) -> Net:
    """The net trained with BN, whose BN layers output their batch's statistics."""
    return Net(
        f"{fov.name}_fov_make_inference",
        [data(setting, "data", ["data"], "cls_imgset", STRONG + WEAK), *network(setting, fov, Norm.MEASURED)],
        about=f"WSSL, {fov.name} field of view: gives every BN layer's statistics, to be folded into it.",
    )


def deploy(setting: Setting, fov: FoV) -> Net:
    """The net for inference on pictures of any size; BN, if it has any, is folded."""
    size, setting = crop_size(setting), replace(setting, kept="")
    return Net(
        f"{fov.name}_fov_deploy",
        list(network(setting, fov, Norm.FOLDED if setting.norm else None)),
        inputs={"data": (1, 3, size, size)},
        about=DEPLOY_NOTES.format(fov=fov.name),
    )


def files(setting: Setting) -> dict[str, Net | Solver]:
    """Every file of the folder."""
    made: dict[str, Net | Solver] = {}
    for fov in FOVS.values():
        for net in (semi(setting, fov), strong(setting, fov)):
            times = {"stepsize": 2000, "max_iter": 6000, "iter_size": 1}
            solver = sgd(net.name, **times, base_lr=0.001, about=SOLVER_NOTES, tested=not setting.kept)
            made |= {net.name: net, f"{net.name}_solver": solver}
        measured = [make_inference(setting, fov)] if setting.norm else []
        made |= {net.name: net for net in (*measured, deploy(setting, fov))}
    if setting.kept:
        made |= {net.name: net for net in (keep_strong(setting), keep_weak(leveled(setting)))}
    return made
