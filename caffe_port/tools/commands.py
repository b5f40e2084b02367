"""caffe-port: every command in one table, listed in groups, found by name or by the name of Caffe's own tool."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import caffe_port
from caffe_port.errors import nearest

__all__ = ["COMMANDS", "Command", "find", "main"]


class Command(NamedTuple):
    """A line of ``caffe-port --help``.

    Attributes:
        does: one sentence.
        module: where its ``main(argv)`` is, in ``caffe_port.tools`` unless the name has dots; ``module:function`` for
            another function. By default the command's name with underscores.
        aliases: Caffe's own names for it, with - for _.
    """

    name: str
    does: str
    module: str = ""
    aliases: tuple[str, ...] = ()


COMMANDS: dict[str, tuple[Command, ...]] = {
    "look": (
        Command("info", "What a definition or weight file contains, and what of it is not supported"),
        Command("draw", "A definition as a picture of boxes", aliases=("draw-net",)),
        Command("view", "A page that shows a net: its graph, its numbers, the first layer that is wrong"),
        Command("parity", "A net compared with the numbers of another Caffe, layer by layer"),
        Command("layers-table", "Every layer type: bottoms, tops, gradient, what it was compared with"),
    ),
    "convert": (
        Command("convert", "Caffe's weights for PyTorch, and the next steps", "caffe2torch:convert"),
        Command("caffe2torch", "Caffe's weights as a file for PyTorch"),
        Command("torch2caffe", "A file of PyTorch as Caffe's weights"),
        Command("export", "A net as an ONNX file, checked against the net, or for torch.export"),
        Command("vgg16", "VGG-16's convolutions from an ONNX file made of Keras's"),
        Command("fp-bp", "A classification net's weights for the net that holds its backward pass"),
        Command(
            "upgrade",
            "Definitions and weights of old generations in the newest form",
            aliases=("upgrade-net-proto-text", "upgrade-net-proto-binary", "upgrade-solver-proto-text"),
        ),
    ),
    "run": (
        Command("test", "Score a net on the data it names", "caffe:score"),
        Command("time", "Time a net, layer by layer", "caffe:benchmark"),
        Command("device-query", "The GPUs of this machine", "caffe:device_query"),
        Command("extract-features", "Blobs of a net over its data, as databases"),
        Command("classify", "The best classes of pictures, by a trained net"),
        Command("segment", "Masks for pictures, by a trained net"),
        Command("detect", "Objects in pictures, by a trained net; mean average precision"),
    ),
    "train": (
        Command("train", "Train or finetune a net with Caffe's solver", "caffe:train"),
        Command("make-shapes", "Pictures with masks, drawn, to try everything on"),
        Command("prepare", "Training lists from a folder of Pascal VOC"),
        Command("convert-imageset", "Pictures and labels as an LMDB or LevelDB database"),
        Command("compute-image-mean", "The mean picture of a database"),
        Command("train-classifier", "The classification net under DecoupledNet, from image-level labels"),
        Command("keep-features", "What a fixed part of a net makes of its data, for trainings without that part"),
        Command("train-segmentation", "DecoupledNet's segmentation net, from masks"),
        Command("fold", "Batch statistics into scale and shift, for inference"),
        Command("evaluate", "Mean IoU as Pascal VOC counts it"),
        Command(
            "experiment",
            "Table 1 of the paper: every system at every level of annotation",
            "caffe_port.segmentation.experiment.__main__",
        ),
    ),
    "more": (
        Command("dump-reference", "A script for your own Caffe that stores what a net computes, for parity"),
        Command("build", "The published networks and their solvers, at any width and size"),
        Command("as-caffe", "Run a script that imports caffe"),
        Command("demo", "Draw pictures, train DecoupledNet on them, segment, score, convert it"),
        Command("demo-parity", "An embedded model, converted, run on a picture, compared with real Caffe"),
        Command("completion", "Code that a shell evaluates to complete commands and options"),
    ),
}
"""By group, in the order of the list. A new command is one line here and a module with ``main(argv)``."""


def find(name: str) -> Command | None:
    """The command of that name or alias; _ counts as -, and the names of Caffe's scripts may end in .py."""
    spelled = name.removesuffix(".py").replace("_", "-")
    for group in COMMANDS.values():
        for command in group:
            if spelled == command.name or spelled in command.aliases:
                return command
    return None


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with its status, or with 2 for an unknown name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if not arguments or arguments[0] in ("-h", "--help", "-help", "help"):
        print(_usage())
        sys.exit(0)
    name, *rest = arguments
    if name == "caffe" and rest:  # as it is written: caffe train
        name, *rest = rest
    if name in ("--version", "-version"):
        print(f"caffe_port {caffe_port.__version__}")
        sys.exit(0)
    command = find(name)
    if command is None:
        every = [word for group in COMMANDS.values() for command in group for word in (command.name, *command.aliases)]
        near = nearest(name.replace("_", "-"), every)
        print(
            f"caffe-port: error: no command {name!r}"
            + (f" (near: {near})" if near else "")
            + "; see caffe-port --help",
            file=sys.stderr,
        )
        sys.exit(2)
    _run(command, rest)
    sys.exit(0)


def _run(command: Command, arguments: Sequence[str]) -> None:
    sys.argv = [f"caffe-port {command.name}", *arguments]  # what reports of the command line read
    module, _, function = (command.module or command.name.replace("-", "_")).partition(":")
    home = importlib.import_module(module if "." in module else f"caffe_port.tools.{module}")
    getattr(home, function or "main")(arguments)


def _usage() -> str:
    lines = ["usage: caffe-port COMMAND [ARGUMENT ...]"]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {command.name:22}{command.does}" for command in commands)]
    others = [alias for group in COMMANDS.values() for command in group for alias in command.aliases]
    if others:
        names = ", ".join(["caffe train", *(alias.replace("-", "_") for alias in others)])
        lines += ["", f"Caffe's own names work too: {names}"]
    lines += ["", "caffe-port COMMAND --help for options and an example; caffe-port --version"]
    return "\n".join(lines)


def _complete() -> None:
    """Answers a shell's completion request; after a command's name, the command's own parser answers."""
    words = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)].split(" ")
    command = find(words[1]) if len(words) > 2 else None
    if command is not None:
        os.environ["_ARGCOMPLETE"] = "2"  # the word before the command's own arguments
        _run(command, [])
    import argparse

    import argcomplete

    parser = argparse.ArgumentParser(prog="caffe-port", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=[command.name for group in COMMANDS.values() for command in group])
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    main()
