"""view: a page that shows a net, its weights, its activations for a picture, and its errors against a reference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.schema import Definition, read_net
from caffe_port.tools.cli import Parser, count, numbers, read_options, run
from caffe_port.tools.progress import working

if TYPE_CHECKING:
    import numpy as np

    from caffe_port.graph import Node
    from caffe_port.pycaffe import Net
    from caffe_port.tools.parity_report import Report
    from caffe_port.view.data import Compared, Run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "view",
        "Write a page that shows a net in any browser: one file that loads nothing. It shows the graph, and of each"
        " layer its parameters, shapes and blobs; with a picture the activations; with a reference (as parity takes"
        " it) the error of each layer, and the first that is over its bound.",
        example="net.prototxt model.caffemodel --reference reference.npz -o net.html",
    )
    parser.reads("prototxt", "weights", "picture", "reference")
    add = parser.add_argument
    add("prototxt", metavar="NET", help="the definition")
    add("weights", metavar="MODEL", nargs="?", help="its weights, of any format")
    parser.add_output(help="the page; default: NET.html")
    add("--phase", choices=("TEST", "TRAIN"), default="TEST", help="default: TEST")
    add("--level", type=int, default=0, metavar="N", help="the net's level")
    add("--stage", metavar="A,B", default="", help="the net's stages")
    add("--reference", metavar="R.npz", help="what another Caffe computed")
    add("--picture", metavar="FILE", help="run the net on this picture; needs weights")
    add("--channels", type=count, default=8, metavar="N", help="of each blob, to show; default: %(default)s")
    group = parser.add_argument_group("how the net wants its picture: resized to its input, blue, green, red, 0 to 255")
    group.add_argument("--mean", metavar="B,G,R", help="subtract these, in the net's order of channels")
    group.add_argument("--scale", type=float, default=1.0, metavar="S", help="then multiply by this; default: 1")
    group.add_argument("--rgb-net", action="store_true", help="the net wants red, green, blue")
    parser.add_quiet()
    parser.add_dialect()
    run(_view, parser, argv)


def _view(arguments: argparse.Namespace) -> None:
    output = arguments.output or str(Path(arguments.prototxt).with_suffix(".html"))
    check_output(output, overwrite=arguments.force)
    if arguments.picture and not (arguments.weights or arguments.reference):
        raise CaffeError("--picture", "no weights", expected="MODEL after NET on the command line")
    stages = tuple(stage for stage in arguments.stage.split(",") if stage)
    options = {"phase": arguments.phase, "level": arguments.level, "stages": stages, **read_options(arguments)}
    with working("view", quiet=arguments.quiet):
        definition = read_net(arguments.prototxt, **options)
        found = _Found(definition, arguments)
        from caffe_port.view import net_data, page

        text = page(
            net_data(definition, weights=found.weights, run=found.run, compared=found.compared, notes=found.notes)
        )
    with atomic_write(output, overwrite=arguments.force) as file:
        file.write(text.encode())
    if not arguments.quiet:
        for line in filter(None, [*found.notes, found.compared.verdict if found.compared else ""]):
            print(line)
        print(
            f"wrote {output}: {len(definition.net.layer) - len(definition.inserted)} layers, {len(text) / 1e6:.1f} MB"
        )


class _Found:
    """What there is beside the definition: weights, a run, a comparison, and notes on what is missing."""

    def __init__(self, definition: Definition, arguments: argparse.Namespace) -> None:
        self.notes: list[str] = []
        self.weights: dict[str, list[np.ndarray | None]] = {}
        self.run: Run | None = None
        self.compared: Compared | None = None
        if arguments.weights:
            self._read(definition, arguments.weights)
        if not (arguments.picture or arguments.reference):
            return
        from caffe_port.pycaffe import Net
        from caffe_port.tools.parity_report import check_parameters, measure
        from caffe_port.tools.replay import Reference
        from caffe_port.view.data import add_picture, record

        reference = Reference(arguments.reference) if arguments.reference else None
        net = Net(definition, weights=arguments.weights)
        if reference:
            check_parameters(net, arguments.weights, reference)
        if arguments.picture:
            name, *others = _inputs(net, alone=reference is None)
            shape = net.blobs[name].shape
        else:
            self.run = record(net, f"the inputs of {arguments.reference}", arguments.channels)
        if reference:
            report = measure(net, reference)
            self.compared = _compared(net, report)
            if reference.keys("param"):
                self.weights = {name: [blob.data for blob in blobs] for name, blobs in net.params.items()}
        picture = None
        if arguments.picture:
            self.notes += [f"input {name} is as {arguments.reference} has it" for name in others]
            net.blobs[name].reshape(*shape)
            picture = _fill(net, name, arguments)
            self.run = record(net, arguments.picture, arguments.channels)
            net.forward()
        assert self.run is not None
        add_picture(net, self.run, arguments.channels, picture=picture)

    def _read(self, definition: Definition, path: str) -> None:
        from caffe_port.formats import open_weights
        from caffe_port.spec import infer

        stored = open_weights(path, writable=False)
        self.weights = {layer.name: layer.blobs for layer in stored.layers if layer.blobs}
        wanted = {around.message.name for around in infer(definition, check=False).layers if around.params}
        names = {message.name for message in definition.net.layer}
        lacking = [name for name in wanted if name not in self.weights]
        unused = [name for name in self.weights if name not in names]
        for found, what in ((sorted(lacking), "has nothing for"), (unused, "also has")):
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                self.notes.append(f"{path} {what} {', '.join(found[:3])}{more}")


def _compared(net: Net, report: Report) -> Compared:
    """By layer the arrays that show its work; an in-place blob counts for all that wrote it."""
    from caffe_port.tools.parity_report import makers
    from caffe_port.view.data import Compared

    rows: dict[int, list[Any]] = {}
    for row in report.rows:
        for index in dict.fromkeys(_shown(net, node) for node in makers(net, row.comparison)):
            rows.setdefault(index, []).append(row)
    worst = {i: max(range(len(found)), key=lambda k: found[k].severity) for i, found in rows.items()}
    first = _shown(net, makers(net, report.first.comparison)[0]) if report.first else None
    return Compared(report.verdict, {i: [row.as_json() for row in found] for i, found in rows.items()}, worst, first)


def _shown(net: Net, node: Node) -> int:
    """The place of a layer that the page shows: of a Split that the net inserted, of what it splits."""
    while node.index in net.definition.inserted:
        node = next(n for n in reversed(net.graph.nodes[: node.index]) if node.bottoms[0] in n.tops)
    return node.index


def _inputs(net: Net, *, alone: bool) -> list[str]:
    """The input that takes the picture, then the others, of which there may be none where it is ``alone``.

    Raises:
        CaffeError: there is not one such input.
    """
    from caffe_port.view.data import picture_inputs

    found = picture_inputs(net)
    others = [name for name in net.inputs if name not in found]
    if len(found) == 1 and not (alone and others):
        return found + others
    shapes = [f"{name} {tuple(net.blobs[name].shape)}" for name in net.inputs]
    remedy = "a reference sets the others" if len(found) == 1 else "use the deploy definition"
    expected = "one input for pictures (items, 1 or 3, height, width)" + (" and no other" if alone else "")
    raise CaffeError("--picture", f"inputs {', '.join(shapes) or 'none'}", expected=expected, remedy=remedy)


def _fill(net: Net, name: str, arguments: argparse.Namespace) -> np.ndarray:
    """Puts the picture into an input, into each item of the batch; the picture as the page shows it."""
    import cv2
    import numpy as np

    from caffe_port.data.pictures import planes, resize

    blob = net.blobs[name]
    channels, *size = blob.shape[1:]
    file = Path(arguments.picture)
    file.open("rb").close()
    picture = cv2.imread(str(file), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise FormatError(str(file), "something that OpenCV cannot read", expected="a picture (JPEG, PNG, ...)")
    resized = resize(picture, (size[0], size[1]), str(file))
    values = planes(resized).astype(np.float32)
    if arguments.rgb_net:
        values = values[::-1]
    if arguments.mean:
        mean = np.array(numbers("--mean", arguments.mean), np.float32)
        if len(mean) not in (1, channels):
            expected = f"1 or {channels} numbers with commas, such as 104,117,123"
            raise CaffeError("--mean", repr(arguments.mean), expected=expected)
        values = values - mean.reshape(-1, 1, 1)
    blob.data[...] = values * np.float32(arguments.scale)
    return np.ascontiguousarray(resized[..., ::-1]) if channels == 3 else resized


if __name__ == "__main__":
    main()
