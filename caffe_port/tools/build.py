"""build: the published networks and their solvers: DecoupledNet, its classification net, DeconvNet, FCN-8s, WSSL."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from caffe_port.definitions import classification, deconvnet, decouplednet, fcn8s, published, wssl
from caffe_port.definitions.definition import Net, Setting, Solver
from caffe_port.definitions.shapes import infer
from caffe_port.errors import DefinitionError, FileError, nearest
from caffe_port.formats.atomic import atomic_write
from caffe_port.tools.cli import FOLDER, Parser, count, run

__all__ = ["definitions", "fraction", "main"]

FAMILIES = {
    "classification": classification,
    "decouplednet": decouplednet,
    "deconvnet": deconvnet,
    "fcn8s": fcn8s,
    "wssl": wssl,
}


def definitions(setting: Setting | None = None, names: Sequence[str] = ()) -> dict[str, Net | Solver]:
    """The definitions by their path, such as ``fcn8s/fcn-8s-pascal-deploy.prototxt``.

    Args:
        setting: what to change in all of them; the published ones without.
        names: families or paths to select; empty selects all.

    Raises:
        CaffeError: no such name, or a net that cannot have the requested input size.
    """
    chosen: dict[str, Net | Solver] = {}
    for name in names or FAMILIES:
        family, _, file = name.partition("/")
        if family not in FAMILIES:
            raise _unknown(name, FAMILIES)
        made = FAMILIES[family].files(setting or Setting())
        paths = {f"{family}/{stem}.prototxt": it for stem, it in made.items()}
        if file and name not in paths:
            raise _unknown(name, paths)
        chosen |= {name: paths[name]} if file else paths
    return chosen


def _unknown(name: str, known: Iterable[str]) -> DefinitionError:
    near = nearest(name, known)
    return DefinitionError(name, "no such net", remedy=f"did you mean {near}?" if near else "--list shows all")


def write(path: Path, definition: Net | Solver, *, overwrite: bool = True) -> None:
    """Writes the whole file or nothing; makes its folder.

    Raises:
        FileError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            str(path.parent), f"cannot be created: {error.strerror}", remedy="choose another with -o"
        ) from error
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(str(definition).encode())


def table(nets: dict[str, Net | Solver]) -> Iterator[str]:
    """One line for each file: its path, and for a net its layers and parameters."""
    yield f"{'file':62} {'layers':>6} {'parameters':>12}"
    for path, it in nets.items():
        if isinstance(it, Solver):
            yield path
        else:
            yield f"{path:62} {len(list(it.layers('TEST'))):6} {infer(it).total:12,}"


def _build(args: argparse.Namespace) -> int:
    setting = Setting(
        fraction("--width", args.width),
        args.input_size,
        args.batch,
        args.data_root.rstrip("/"),
        args.classes,
        args.level,
        args.norm,
        args.score_rate,
        fraction("--fc-width", args.fc_width) if args.fc_width else None,
        fraction("--decoder-width", args.decoder_width) if args.decoder_width else None,
        args.kept.rstrip("/"),
    )
    nets = definitions(setting, args.names)
    if args.list:
        print("\n".join(table(nets)))
        return 0
    folder = args.output or published()
    if setting != Setting() and not args.output:
        raise FileError(str(folder), "holds the published definitions", remedy="give -o DIR for changed ones")
    differ = [path for path, it in nets.items() if not _holds(folder / path, str(it))]
    if args.check:
        for path in differ:
            print(f"{folder / path}: differs from what the builder writes; run caffe-port build", file=sys.stderr)
        return 1 if differ else 0
    there = [path for path in differ if (folder / path).exists()]
    if there and args.output and not args.force:
        raise FileError(
            str(folder / there[0]),
            f"exists with other contents (one of {len(there)} such files)",
            remedy="pass -f to overwrite them, or -o for another folder",
        )
    for path in differ:
        write(folder / path, nets[path])
    if not args.quiet:
        print(f"{len(nets)} files in {folder}")
    return 0


def fraction(option: str, text: str) -> Fraction:
    """A width's value.

    Raises:
        DefinitionError: it is none.
    """
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise DefinitionError(option, repr(text), expected="a positive fraction such as 1/32") from None


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 1 for files that ``--check`` finds changed, 2 after an error."""
    parser = Parser(
        "build",
        "Write the published networks and their solvers, at any width, input size and number of classes. Existing"
        " files that differ are not overwritten without -f.",
        example="fcn8s -o slim --width 1/32",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a family or a file of --list; default: all")
    parser.add_output("DIR", kind=FOLDER, type=Path, help="default: the folder of the published definitions")
    add("--width", default="1", help="factor on every number of features, such as 1/32")
    add("--fc-width", default="", metavar="W", help="of fc6 and fc7, which then have fillers; default: --width")
    add("--decoder-width", default="", metavar="W", help="of bridge and segmentation network; default: --width")
    add("--input-size", type=int, default=0, metavar="N", help="height and width of the input")
    add("--batch", type=int, default=0, metavar="N", help="images in a batch of every data layer")
    add("--classes", type=int, default=20, metavar="N", help="without the background; default: 20")
    add("--level", default="", help="strong pictures: the lists of prepare's --levels of this name")
    add("--norm", action="store_true", help="for training from noise: BN and fillers everywhere")
    add("--score-rate", type=count, default=10, metavar="N", help="factor on the class scores' rate; default: 10")
    add("--data-root", default=".", metavar="DIR", help="folder of VOC2012 and the image lists")
    add("--kept", default="", metavar="DIR", help="nets with fixed convolutions read what keep-features wrote here")
    add("--check", action="store_true", help="write nothing; fail where a file differs")
    add("--list", action="store_true", help="write nothing; show files, layers, parameters")
    parser.add_quiet()
    run(_build, parser, argv)


if __name__ == "__main__":
    main()
