"""export: a net as an ONNX file, a program of torch.export or a PyTorch file, checked before it is kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caffe_port.errors import CaffeError
from caffe_port.formats.atomic import check_output
from caffe_port.tools.cli import EITHER, Parser, numbers, print_json, read_options, run, size, trained_net
from caffe_port.tools.progress import working

if TYPE_CHECKING:
    from caffe_port.export import Exported
    from caffe_port.export.onnx_picture import Preprocessing

__all__ = ["main"]

_SUFFIXES = (".onnx", ".pt2", ".py")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "export",
        "Export a trained net: to ONNX, to torch.export's .pt2, or to a readable PyTorch file, .py, with its weights in"
        " a .safetensors beside it. What was written is run and compared with the net, and kept if the numbers agree.",
        example="net.prototxt model.caffemodel -o model.onnx",
    )
    add = parser.add_argument
    add("prototxt", metavar="NET", help="the deploy definition")
    add("weights", metavar="MODEL", help="its weights, of any format")
    parser.add_output(help="model.onnx, model.pt2 or model.py; default: MODEL.onnx")
    add("--outputs", metavar="BLOB", nargs="+", help="output blobs, in place of the net's outputs")
    add("--opset", type=int, metavar="N", help="ONNX's operator set version; default: 18")
    add(
        "--dtype",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="type of the numbers in the file (.onnx), of the weights (.py); default: %(default)s",
    )
    add("--fixed-batch", action="store_true", help="the definition's batch size only")
    add("--dynamic-size", action="store_true", help="ONNX: any height and width, where all layers allow it")
    add("--no-fold", action="store_true", help="keep normalizations as separate operators")
    add("--no-check", action="store_true", help="write the file without running it")
    add("--reference", metavar="R.npz", help="also compare with another Caffe's numbers (as parity takes them)")
    add("--calibrate", metavar="FOLDER", help="for int8: pictures of the kind that the net is for")
    group = parser.add_argument_group(
        "pictures: an ONNX graph takes uint8 (batch, height, width, channels) of any size, a .py has picture()"
    )
    group.add_argument("--mean", metavar="B,G,R", help="subtract these, in the net's order of channels")
    group.add_argument("--scale", type=float, default=1.0, metavar="S", help="then multiply by this; default: 1")
    group.add_argument("--input-size", metavar="HxW", help="first resize to this; default: the net's input")
    group.add_argument("--rgb", action="store_true", help="pictures come as red, green, blue")
    parser.add_json("print what was written as one line of JSON")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("prototxt", "weights", "reference")
    parser.reads("calibrate", kind=EITHER)
    run(_export, parser, argv)


def _export(arguments: argparse.Namespace) -> None:
    output = arguments.output or str(Path(arguments.weights).with_suffix(".onnx"))
    suffix = Path(output).suffix
    if suffix not in _SUFFIXES:
        raise CaffeError(output, f"the extension {suffix!r}", expected=" or ".join(_SUFFIXES))
    check_output(output, overwrite=arguments.force)
    if suffix == ".py":
        beside = Path(output).with_suffix(".safetensors")
        if beside.exists() and beside.samefile(arguments.weights):
            raise CaffeError(output, f"{beside}, which would replace MODEL", expected="another name with -o")
    with working(f"export to {Path(output).name}", quiet=arguments.quiet or arguments.json):
        result = _exported(output, arguments)
    if arguments.json:
        checked = result.checked
        print_json(
            {
                "file": output,
                "inputs": result.inputs,
                "outputs": result.outputs,
                "nodes": result.nodes,
                "folded": result.folded,
                "computed": result.computed,
                "worst": checked.worst if checked else None,
                "error": checked.error if checked else None,
                "labels_equal": result.agreement.labels if result.agreement else None,
                "objects_found": result.agreement.objects if result.agreement else None,
            }
        )
    elif not arguments.quiet:
        if result.folded:
            print(f"folded into weights: {', '.join(result.folded)}")
        print(result.checked or "not checked")
        if result.agreement:
            print(result.agreement)
        what = {".py": "lines of forward"}.get(suffix, "operators")
        print(f"wrote {output}: {result.nodes} {what}, {', '.join(result.inputs)} to {', '.join(result.outputs)}")


def _exported(output: str, arguments: argparse.Namespace) -> Exported:
    suffix = Path(output).suffix
    net = trained_net(arguments.prototxt, arguments.weights, quiet=True, mmap=True, **read_options(arguments))
    _refuse_options(suffix, arguments)
    options = {
        "dynamic_batch": not arguments.fixed_batch,
        "outputs": arguments.outputs,
        "overwrite": arguments.force,
        "verify": not arguments.no_check,
        "reference": arguments.reference,
    }
    if suffix == ".pt2":
        from caffe_port.export.torch_program import torch_program

        return torch_program(net, output, **options)
    options |= {
        "dtype": arguments.dtype,
        "fold": not arguments.no_fold,
        "preprocessing": _preprocessing(arguments),
    }
    if suffix == ".py":
        from caffe_port.export import source

        return source(net, output, **options)
    from caffe_port.export import onnx
    from caffe_port.segmentation.voc import pictures_in

    pictures = None if arguments.calibrate is None else pictures_in([arguments.calibrate])
    options |= {"dynamic_size": arguments.dynamic_size, "calibrate": pictures}
    return onnx(net, output, opset=arguments.opset, **options)


def _refuse_options(suffix: str, arguments: argparse.Namespace) -> None:
    """Raise for options that mean nothing for a format."""
    given = {
        "--opset": arguments.opset is not None,
        "--dynamic-size": arguments.dynamic_size,
        "--dtype int8 or --calibrate": arguments.dtype == "int8" or arguments.calibrate is not None,
        "--dtype fp16": arguments.dtype == "fp16",
        "--mean, --scale, --input-size or --rgb": _preprocessing(arguments) is not None,
    }
    meaningless = {".onnx": 0, ".py": 3, ".pt2": 5}[suffix]
    for option in list(given)[:meaningless]:
        if given[option]:
            remedy = "a .py takes every size that its layers allow" if option == "--dynamic-size" else ""
            raise CaffeError(f"export to {suffix}", option, expected="an option for this format", remedy=remedy)


def _preprocessing(arguments: argparse.Namespace) -> Preprocessing | None:
    if not (arguments.mean or arguments.input_size or arguments.rgb or arguments.scale != 1):
        return None
    from caffe_port.export.onnx_picture import Preprocessing

    mean, size_of = numbers("--mean", arguments.mean), size("--input-size", arguments.input_size)
    return Preprocessing(mean=mean, scale=arguments.scale, size=size_of, rgb=arguments.rgb)


if __name__ == "__main__":
    main()
