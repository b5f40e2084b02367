"""classify: the best classes of pictures. Source: python/classify.py, python/caffe/classifier.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from caffe_port.console import number
from caffe_port.errors import CaffeError, FileError, ShapeError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools.cli import EITHER, Parser, as_gflags, numbers, print_json, read_options, run, table
from caffe_port.tools.progress import each

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "classify",
        "Score pictures with a classification net: the best classes of each, over ten crops as Caffe's classify.py, or"
        " the centre. Pictures are read as RGB in 0 to 1 and by default become BGR in 0 to 255.",
        example="picture.jpg --model-def classifier.prototxt --pretrained-model classifier_1.caffemodel",
    )
    add = parser.add_argument
    add("pictures", metavar="PICTURE", nargs="+", help="pictures, or folders of them")
    add("--model-def", metavar="NET", required=True, help="the deploy net")
    add("--pretrained-model", metavar="WEIGHTS", required=True, help="of any format")
    add("--labels", metavar="FILE", help="the classes' names, one a line, from class 0")
    add("--top", type=int, default=5, metavar="N", help="classes to print; default: %(default)s")
    add("--center-only", action="store_true", help="only the centre of a picture")
    add(
        "--images-dim",
        metavar="H,W",
        help="size to which pictures are resized before cropping; default: the net's input",
    )
    add("--mean-file", metavar="FILE", help="a mean picture (.binaryproto or .npy); default: none")
    add("--mean", metavar="B,G,R", help="a mean for each channel, such as 104,117,123")
    add("--input-scale", type=float, metavar="S", help="multiply by S after the mean")
    add(
        "--raw-scale",
        type=float,
        default=255.0,
        metavar="S",
        help="multiply by S before the mean; default: %(default)s",
    )
    add(
        "--channel-swap",
        default="2,1,0",
        metavar="ORDER",
        help="order of the channels; default: %(default)s, which is BGR",
    )
    add("-o", "--output", metavar="FILE.npy", help="also write all scores (pictures, classes)")
    parser.add_force()
    parser.add_device()
    parser.add_json("print a line of JSON for each picture: its best classes with their scores")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("pictures", kind=EITHER)
    parser.reads("model_def", "pretrained_model", "labels", "mean_file")
    parser.writes("output")
    run(_classify, parser, as_gflags(argv))


def _classify(arguments: argparse.Namespace) -> None:
    from caffe_port.pycaffe import io
    from caffe_port.pycaffe.classifier import Classifier
    from caffe_port.segmentation.voc import pictures_in
    from caffe_port.tools.train import device_of

    paths = [path for given in arguments.pictures for path in pictures_in([given])]
    if arguments.output:
        check_output(arguments.output, overwrite=arguments.force)
    labels = Path(arguments.labels).read_text(encoding="utf-8").splitlines() if arguments.labels else []
    device, swap = device_of(arguments.device), numbers("--channel-swap", arguments.channel_swap, int)
    options = read_options(arguments)
    net = Classifier(
        arguments.model_def,
        arguments.pretrained_model,
        image_dims=numbers("--images-dim", arguments.images_dim, int) or None,
        input_scale=arguments.input_scale,
        raw_scale=arguments.raw_scale,
        channel_swap=swap,
        **options,
    )
    net.to(device)
    mean = _mean(arguments, tuple(int(n) for n in net.crop_dims))
    if mean is not None:
        net.transformer.set_mean(net.inputs[0], mean)
    scores = []
    for path in each(paths, "classify", quiet=arguments.quiet or arguments.json):
        picture = io.load_image(str(path), color=len(swap) == 3)
        row = net.predict([picture], oversample=not arguments.center_only)[0]
        scores.append(row)
        names = labels or [str(i) for i in range(len(row))]
        if len(names) < len(row):
            raise CaffeError(arguments.labels, f"{len(names)} names", expected=f"{len(row)}, as many as scores")
        best = np.argsort(-row, kind="stable")[: arguments.top]
        if arguments.json:
            print_json({"picture": str(path), "classes": {names[i]: float(row[i]) for i in best}})
        elif not arguments.quiet:
            print(path)
            print(table(("score", "class"), [(number(row[i], ".4f"), names[i]) for i in best], right=(0,)))
    if arguments.output:
        with atomic_write(arguments.output, overwrite=arguments.force) as file:
            np.save(file, np.array(scores))


def _mean(arguments: argparse.Namespace, size: tuple[int, ...]) -> np.ndarray | None:
    """The mean in the net's order of channels: a picture, centre-cropped where it is larger, or a number a channel."""
    if arguments.mean and arguments.mean_file:
        raise CaffeError("--mean and --mean-file", "both", expected="one")
    if arguments.mean:
        return np.array(numbers("--mean", arguments.mean), np.float32)
    if not arguments.mean_file:
        return None
    if arguments.mean_file.endswith(".npy"):
        try:
            mean = np.load(arguments.mean_file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FileError(arguments.mean_file, f"cannot be read: {error}", expected="an array") from None
    else:
        from caffe_port.formats.meanfile import read_mean

        mean = read_mean(arguments.mean_file)
    if mean.ndim != 3 or any(m < n for m, n in zip(mean.shape[1:], size, strict=False)):
        raise ShapeError(
            arguments.mean_file, f"shape {mean.shape}", expected=f"channels x {size[0]} x {size[1]} or more"
        )
    top, left = ((m - n) // 2 for m, n in zip(mean.shape[1:], size, strict=True))
    return mean[:, top : top + size[0], left : left + size[1]]


if __name__ == "__main__":
    main()
