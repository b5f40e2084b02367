"""fold: turns weights trained with batch statistics into weights for inference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.formats.adding import add_layers
from caffe_port.formats.atomic import check_output
from caffe_port.tools.cli import FOLDER, Parser, count, read_options, run, trained_net
from caffe_port.tools.progress import each
from caffe_port.tools.train import device_of

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["main"]

PASSES = 101
"""As in the released script: one before its loop of a hundred."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "fold",
        "Run a net whose BN layers output their batch's statistics over many batches of its data, average these, and"
        " write its weights with BN's scale and shift for bn_mode: INFERENCE. Layers of TRAINED that the net lacks stay"
        " as they are.",
        example="make_inference.prototxt trained.caffemodel --passes 2",
    )
    add = parser.add_argument
    add("prototxt", metavar="NET.prototxt", help="such as prototxt/decouplednet/*_make_inference.prototxt")
    add("weights", metavar="TRAINED.caffemodel", help="or any other file of weights")
    parser.add_output(help="default: TRAINED_inference.caffemodel; .h5 gives Caffe's HDF5")
    add("--passes", type=count, default=PASSES, metavar="N", help="batches to average over; default: %(default)s")
    add(
        "--absorb",
        action="store_true",
        help="fold into the convolutions: the weights also suit the net without BN layers",
    )
    add(
        "--unbiased",
        action="store_true",
        help="multiply variances by m / (m - 1), which the original intended but did not do",
    )
    add("--source", metavar="LIST", help="the data layer's list, in place of the definition's")
    add("--root-folder", metavar="DIR", help="prefix of its names, in place of the definition's")
    add("--batch", type=count, metavar="N", help="images in a batch, in place of the definition's")
    add("--seed", type=int, metavar="N", help="of shuffling and mirroring; default: a new one each time")
    parser.add_device()
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("prototxt", "weights", "source")
    parser.reads("root_folder", kind=FOLDER)
    run(_fold, parser, argv)


def _fold(arguments: argparse.Namespace) -> None:
    from caffe_port.random import set_random_seed
    from caffe_port.schema import read_net
    from caffe_port.segmentation.bn_folding import absorb, fold, measure

    source = Path(arguments.weights)
    output = arguments.output or str(source.with_name(f"{source.stem}_inference.caffemodel"))
    check_output(output, overwrite=arguments.force)
    if Path(output).exists() and Path(output).samefile(source):
        raise CaffeError(output, "is the file of the trained weights", remedy="choose another name with -o")
    device = device_of(arguments.device)
    definition = read_net(arguments.prototxt, phase="TEST", **read_options(arguments))
    _set_data(definition, arguments)
    if arguments.seed is not None:
        set_random_seed(arguments.seed)
    net = trained_net(definition, arguments.weights, quiet=arguments.quiet).to(device)
    if net.graph.inputs:
        raise CaffeError(
            arguments.prototxt, f"inputs {', '.join(net.graph.inputs)}", expected="a net with a data layer"
        )
    moments = measure(net, ({} for _ in each(range(arguments.passes), "fold", quiet=arguments.quiet)))
    fold(moments, unbiased=arguments.unbiased)
    if arguments.absorb:
        absorb(net, moments)
    net.save(output)
    add_layers(output, open_weights(source).layers)
    if not arguments.quiet:
        kind = "unbiased" if arguments.unbiased else "biased, as released"
        print(f"{len(moments)} BN layers folded over {arguments.passes} passes (variance {kind})\nwrote {output}")


def _set_data(definition: Definition, arguments: argparse.Namespace) -> None:
    """Replaces settings of the data layers by those given on the command line.

    Raises:
        CaffeError: no layer has these settings.
    """
    given = {"source": arguments.source, "root_folder": arguments.root_folder, "batch_size": arguments.batch}
    given = {name: value for name, value in given.items() if value is not None}
    layers = [layer for layer in definition.net.layer if layer.HasField("image_data_param")]
    if given and not layers:
        raise CaffeError(
            definition.path, "no layer that reads pictures", expected="one, for --source, --root-folder and --batch"
        )
    for layer in layers:
        for name, value in given.items():
            setattr(layer.image_data_param, name, value)


if __name__ == "__main__":
    main()
