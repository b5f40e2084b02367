"""Writes the published networks and their solvers: DecoupledNet, its classification net, DeconvNet, FCN-8s, WSSL.

In use:
    python prototxt/build.py                                       all of them, as published, in their place
    python prototxt/build.py -o slim --width 1/32                  the same nets with a 32nd of the features
    python prototxt/build.py -o big --input-size 512 decouplednet  one family (or one file) at another size
    python prototxt/build.py --list                                what there is, with parameter counts
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.errors import CaffeError, DefinitionError, FileError, nearest
from caffe_port.formats.atomic import atomic_write
from prototxt import classification, deconvnet, decouplednet, fcn8s, wssl
from prototxt.definition import Net, Setting, Solver
from prototxt.shapes import infer

__all__ = ["definitions", "main"]

HERE = Path(__file__).resolve().parent
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
        names: families or paths to choose from them, all without.

    Raises:
        CaffeError: no such name, or a net that cannot have the wished input size.
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
    return DefinitionError(
        name, "no such net", remedy=f"did you mean {near}?" if near else "--list shows what there is"
    )


def write(path: Path, definition: Net | Solver) -> None:
    """Writes the whole file or nothing; makes its folder.

    Raises:
        FileError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            str(path.parent), f"cannot be made: {error.strerror}", remedy="choose another with -o"
        ) from error
    with atomic_write(path, overwrite=True) as file:
        file.write(str(definition).encode())


def table(nets: dict[str, Net | Solver]) -> Iterator[str]:
    """A line a file: its path, and for a net its layers and parameters."""
    yield f"{'file':62} {'layers':>6} {'parameters':>12}"
    for path, it in nets.items():
        if isinstance(it, Solver):
            yield path
        else:
            yield f"{path:62} {len(list(it.layers('TEST'))):6} {infer(it).total:12,}"


def run(args: argparse.Namespace) -> int:
    try:
        width = Fraction(args.width)
    except (ValueError, ZeroDivisionError):
        raise DefinitionError("--width", repr(args.width), expected="a positive fraction such as 1/32") from None
    setting = Setting(
        width, args.input_size, args.batch, args.data_root.rstrip("/"), args.classes, args.level, args.norm
    )
    nets = definitions(setting, args.names)
    if args.list:
        print("\n".join(table(nets)))
        return 0
    folder = args.output or HERE
    if setting != Setting() and not args.output:
        raise FileError(str(HERE), "holds the published definitions", remedy="give -o DIR for changed ones")
    if args.check:
        wrong = [path for path, it in nets.items() if not _holds(folder / path, str(it))]
        for path in wrong:
            print(f"{folder / path}: is not what the builder writes; run python prototxt/build.py", file=sys.stderr)
        return 1 if wrong else 0
    for path, it in nets.items():
        write(folder / path, it)
    print(f"{len(nets)} files in {folder}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 1 for files that ``--check`` finds changed, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a family or a file of --list; all without")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where to write (default: this folder)")
    parser.add_argument("--width", default="1", help="factor on every number of features, such as 1/32")
    parser.add_argument("--input-size", type=int, default=0, metavar="N", help="height and width of the input")
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="images in a batch of every data layer")
    parser.add_argument("--classes", type=int, default=20, metavar="N", help="without the background (default: 20)")
    parser.add_argument("--level", default="", help="strong pictures: the lists of prepare's --levels of this name")
    parser.add_argument("--norm", action="store_true", help="for training from noise: BN and fillers everywhere")
    parser.add_argument("--data-root", default=".", metavar="DIR", help="folder of VOC2012 and the image lists")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    parser.add_argument("--list", action="store_true", help="write nothing; show files, layers, parameters")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except CaffeError as error:
        if args.debug:
            raise
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
