"""segment: pictures in, masks out, by DecoupledNet's released procedure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools.cli import Parser, each, run, say, trained_net
from caffe_port.tools.train import device_of

if TYPE_CHECKING:
    from caffe_port.segmentation.inference import Segmentation, Segmenter

__all__ = ["main"]

_DEPLOY = "prototxt/decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"


@dataclass(frozen=True)
class Job:
    """A picture and where its results go; those not asked for are None."""

    picture: Path
    mask: Path
    overlay: Path | None
    maps: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.mask, self.overlay, self.maps) if path is not None]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "segment",
        "Segment pictures with a trained DecoupledNet. Each becomes OUT/NAME.png, of its own size, a PNG whose palette"
        " indices are labels; 0 is the background.",
    )
    add = parser.add_argument
    add("pictures", metavar="PICTURE", nargs="+", help="a picture, or a folder of them")
    add("--prototxt", metavar="NET", help=f"the deploy net of the weights, such as {_DEPLOY}")
    add("--weights", metavar="FILE", help="its parameters, BN folded: .caffemodel, .safetensors, .pth, .npz or .h5")
    add("-o", "--output", metavar="OUT", required=True, help="the folder for the results; made if it is not there")
    add("--overlay", action="store_true", help="also write OUT/NAME_overlay.png, the picture with the labels over it")
    add(
        "--maps",
        action="store_true",
        help="also write OUT/NAME.npz: maps (n, height, width), the n labels they are of, and every class's score",
    )
    add("--threshold", type=_share, default=0.5, metavar="S", help="score above which a class is found; default: 0.5")
    add("--palette", metavar="PNG", help="take the colours from this PNG's palette; default: PASCAL VOC's")
    add("--pass-by-pass", action="store_true", help="run the whole net for every pass, as the original did; slower")
    add("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, auto; default: %(default)s")
    add("--dialect", choices=("bvlc", "noh"), help="which Caffe the net is for; default: found out")
    add("-f", "--force", action="store_true", help="overwrite existing results")
    add("-q", "--quiet", action="store_true", help="print nothing but errors")
    run(_segment, parser, argv)


def _share(text: str) -> float:
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 0 to 1")


def _segment(arguments: argparse.Namespace) -> None:
    from caffe_port.segmentation import voc

    for option, value in (("--prototxt", arguments.prototxt), ("--weights", arguments.weights)):
        if not value:
            raise CaffeError(
                option,
                "missing",
                expected="a deploy net and its weights",
                remedy=f"nets are in prototxt/decouplednet, such as {Path(_DEPLOY).name}",
            )
    colours = voc.read_palette(arguments.palette) if arguments.palette else voc.palette()
    jobs = _jobs(voc.pictures_in(arguments.pictures), arguments)
    segmenter = _segmenter(arguments)
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    names, width = voc.class_names(segmenter.classes), max(len(job.picture.name) for job in jobs)
    for job in each(jobs, "segment", quiet=arguments.quiet):
        picture = voc.read_picture(job.picture)
        found = segmenter(picture)
        _write(job, picture, found, colours, arguments.force)
        if not arguments.quiet:
            scores = (f"{names[label]} {found.scores[label - 1]:.2f}" for label in found.labels[1:])
            say(f"{job.picture.name:{width}}  {', '.join(scores) or 'no class found'}")


def _jobs(pictures: Sequence[Path], arguments: argparse.Namespace) -> list[Job]:
    """Where everything goes; refuses what could not be written before the first picture is segmented.

    Raises:
        FileError: a result is there already, or would be another one's, or is a picture to be read.
    """
    folder = Path(arguments.output)
    if folder.exists() and not folder.is_dir():
        raise FileError(str(folder), "a file", expected="a folder for the results")
    jobs = [
        Job(
            picture,
            folder / f"{picture.stem}.png",
            folder / f"{picture.stem}_overlay.png" if arguments.overlay else None,
            folder / f"{picture.stem}.npz" if arguments.maps else None,
        )
        for picture in pictures
    ]
    sources = {picture.resolve() for picture in pictures}
    makers: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs:
            if output in makers:
                found = f"would come from {makers[output]} and from {job.picture}"
                raise FileError(str(output), found, remedy="leave one of them out")
            if output.resolve() in sources:
                raise FileError(str(output), "a picture to be segmented", remedy="choose another folder with -o")
            if folder.is_dir():
                check_output(output, overwrite=arguments.force)
            makers[output] = job.picture
    return jobs


def _segmenter(arguments: argparse.Namespace) -> Segmenter:
    from caffe_port.segmentation.inference import PassByPass, Segmenter

    device = device_of(arguments.device)
    net = trained_net(arguments.prototxt, arguments.weights, quiet=arguments.quiet, dialect=arguments.dialect)
    kind = PassByPass if arguments.pass_by_pass else Segmenter
    return kind(net.to(device), threshold=arguments.threshold)


def _write(job: Job, picture: np.ndarray, found: Segmentation, colours: np.ndarray, overwrite: bool) -> None:
    from PIL import Image

    from caffe_port.segmentation import voc

    voc.write_labels(job.mask, found.pixels, colours, overwrite=overwrite)
    if job.overlay is not None:
        with atomic_write(job.overlay, overwrite=overwrite) as file:
            Image.fromarray(voc.overlaid(picture, found.pixels, colours)).save(file, "PNG")
    if job.maps is not None:
        with atomic_write(job.maps, overwrite=overwrite) as file:
            np.savez_compressed(file, maps=found.maps, labels=np.array(found.labels), scores=found.scores)


if __name__ == "__main__":
    main()
