"""segment: masks of pictures by the released procedures of DecoupledNet, DeconvNet, SegNet, PSPNet and DeepLab, or by
any net of scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.console import number
from caffe_port.data.shard import launched
from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools.cli import (
    EITHER,
    FOLDER,
    Parser,
    commas,
    count,
    print_json,
    read_options,
    run,
    share,
    trained_net,
)
from caffe_port.tools.progress import each, print_line
from caffe_port.tools.train import device_of

if TYPE_CHECKING:
    from caffe_port.segmentation.system import Segmentation, System

__all__ = ["CRFS", "FITS", "KINDS", "main"]

_DEPLOY = "prototxt/decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
KINDS = ("decouplednet", "deconvnet", "segnet", "pspnet", "deeplab", "plain")
CRFS = ("deconvnet", "deeplab")
FITS = ("pad", "resize")
_OPTIONS = {
    "decouplednet": ("threshold", "pass_by_pass"),
    "deconvnet": ("proposals", "smallest", "model", "aligned"),
    "pspnet": ("base", "scales", "mean"),
    "deeplab": ("mean",),
    "plain": ("fit",),
}
"""Options that apply to some kinds of nets only."""


@dataclass(frozen=True)
class Job:
    """A picture and the paths of its results; None for those not requested."""

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
        "Segment pictures with a trained DecoupledNet, DeconvNet, SegNet, PSPNet, DeepLab, or any net that scores every"
        " class at every pixel, such as FCN-8s. Writes OUT/NAME.png, of the picture's size, a PNG whose palette indices"
        " are labels; 0 is the background.",
        example="picture.jpg --prototxt deploy.prototxt --weights inference.caffemodel -o masks",
    )
    add = parser.add_argument
    add("pictures", metavar="PICTURE", nargs="+", help="a picture, a folder of them, or a folder in VOC's layout")
    add(
        "--list",
        metavar="LIST",
        help="only these pictures of the folder: a file with one name a line, or VOC's list (val)",
    )
    add("--prototxt", metavar="NET", help=f"the deploy net of the weights, such as {_DEPLOY}")
    add(
        "--weights",
        metavar="A,B",
        help="its parameters, BN folded, in one file or several: .caffemodel, .safetensors, .pth, .npz or .h5",
    )
    parser.add_output("OUT", required=True, kind=FOLDER, help="the folder for the results; created if missing")
    add("--overlay", action="store_true", help="also write OUT/NAME_overlay.png, the picture with the labels over it")
    add(
        "--maps",
        action="store_true",
        help="also write OUT/NAME.npz: maps (n, height, width), their n labels, and every class's score",
    )
    add("--system", choices=KINDS, help="how the net is used; default: by its inputs, layers and Caffe")
    add("--with", nargs=2, metavar=("NET", "FILE"), dest="other", help="an ensemble with this net: scores multiplied")
    add("--crf", choices=CRFS, help="a dense CRF over the maps, with these settings")
    add("--classes", metavar="A,B,...|FILE", help="the classes' names from label 1 on, to print; default: classes.txt")
    add("--palette", metavar="PNG", help="take the colours from this PNG's palette; default: PASCAL VOC's")
    parser.add_device()
    parser.add_precision()
    add(
        "--resume",
        action="store_true",
        help="omit pictures whose results exist: goes on where an earlier run stopped",
    )
    parser.add_json("print a line of JSON for each picture: its mask, and the classes found with their scores")
    parser.add_quiet()
    add = parser.add_argument_group("DecoupledNet").add_argument
    add("--threshold", type=share, metavar="S", help="score above which a class is found; default: 0.5")
    add(
        "--pass-by-pass",
        action="store_true",
        default=None,
        help="run the whole net for every pass, as the original did; slower",
    )
    add = parser.add_argument_group("DeconvNet").add_argument
    add(
        "--proposals",
        type=count,
        metavar="N",
        help="windows for each picture, including the whole picture; default: 50",
    )
    add(
        "--smallest",
        type=count,
        metavar="P",
        help="omit windows with a side below P pixels; default: 112, less in pictures below 500",
    )
    add("--model", metavar="FILE", help="the structured forest for EdgeBox, OpenCV's model.yml.gz; default: gradients")
    add("--aligned", action="store_true", default=None, help="without the original's shift by one pixel")
    add = parser.add_argument_group("PSPNet, DeepLab").add_argument
    add("--mean", type=float, nargs=3, metavar=("B", "G", "R"), help="subtracted; default: as their programs")
    add("--base", type=count, metavar="P", help="PSPNet: longer side at scale 1; default: 512, with 19 labels 2048")
    add("--scales", type=float, nargs="+", metavar="S", help="PSPNet: scales to average over; default: 1")
    add = parser.add_argument_group("other nets").add_argument
    add("--fit", choices=FITS, help="how pictures fit the net: zeros around them, or resized; default: as the net is")
    parser.add_dialect()
    parser.reads("pictures", kind=EITHER)
    parser.reads("prototxt", "other", "palette", "model")
    parser.reads("weights", part=commas)
    run(_segment, parser, argv)


def _segment(arguments: argparse.Namespace) -> None:
    from caffe_port.segmentation import voc
    from caffe_port.segmentation.system import segment_all

    for option, value in (("--prototxt", arguments.prototxt), ("--weights", arguments.weights)):
        if not value:
            raise CaffeError(
                option,
                "missing",
                expected="a deploy net and its weights",
                remedy=f"nets are in prototxt/decouplednet, such as {Path(_DEPLOY).name}",
            )
    colours = voc.read_palette(arguments.palette) if arguments.palette else voc.palette()
    jobs = _jobs(_pictures(arguments), arguments)
    if not jobs:  # all done, or fewer pictures than processes
        return
    segmenter = _system(arguments)
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    names, width = _class_names(arguments, segmenter), max(len(job.picture.name) for job in jobs)

    def read(job: Job) -> np.ndarray:
        return voc.read_picture(job.picture)

    def write(job: Job, picture: np.ndarray, found: Segmentation) -> tuple[Job, dict[int, float]]:
        _write(job, picture, found, colours, arguments.force or arguments.resume)
        return job, {label: float(found.scores[label - found.first]) for label in found.found}

    done = segment_all(segmenter, jobs, read, write)
    for job, scores in each(done, "segment", total=len(jobs), quiet=arguments.quiet):
        if arguments.json:
            found = {names[label]: score for label, score in scores.items()}
            print_json({"picture": str(job.picture), "mask": str(job.mask), "classes": found})
        elif not arguments.quiet:
            words = (f"{names[label]} {number(score, '.2f')}" for label, score in scores.items())
            print_line(f"{job.picture.name:{width}}  {', '.join(words) or 'no class found'}")


def _class_names(arguments: argparse.Namespace, system: System) -> tuple[str, ...]:
    """Names of all labels from 0: those given, those of a folder's classes.txt, VOC's, or numbers.

    Raises:
        CaffeError: as many are not given.
    """
    from caffe_port.segmentation.folder import CLASSES_FILE, PHOTOGRAPHS, Folder
    from caffe_port.segmentation.voc import class_names

    count, background = system.classes, ("background",)[: system.first]
    folders = [Path(given) for given in arguments.pictures if (Path(given) / PHOTOGRAPHS).is_dir()]
    if arguments.classes:
        file = Path(arguments.classes)
        names = file.read_text(encoding="utf-8").split() if file.is_file() else arguments.classes.split(",")
        if len(names) != count:
            raise CaffeError("--classes", f"{len(names)} names", expected=f"{count}, as the net scores")
        return (*background, *names)
    if folders and (folders[0] / CLASSES_FILE).is_file() and len(Folder(folders[0]).classes) == count:
        return (*background, *Folder(folders[0]).classes)
    return class_names(count) if background else tuple(map(str, range(count)))


def _warn_unfolded(net: Any, weights: Sequence[str]) -> None:
    """Warns when weights look trained and not folded: a file holds a loss, and the net's BN layers take statistics from
    it."""
    from caffe_port.formats import open_weights

    folded = [layer for node, layer in net.nodes if node.type == "BN" and node.message.bn_param.bn_mode == _INFERENCE]
    types = {layer.type for one in weights for layer in open_weights(one, writable=False).layers}
    if folded and any(name.endswith("Loss") for name in types):
        print(
            f"caffe-port segment: warning: {','.join(weights)}: a training's snapshot, whose BN layers are not folded;"
            " caffe-port fold makes weights for inference",
            file=sys.stderr,
        )


_INFERENCE = 1
"""bn_mode: INFERENCE of BNParameter."""


def _pictures(arguments: argparse.Namespace) -> list[Path]:
    """The pictures to segment.

    Raises:
        FileError: one is missing. CaffeError: a list is given, but not one folder.
    """
    from caffe_port.segmentation.folder import PHOTOGRAPHS, Folder, listed
    from caffe_port.segmentation.voc import pictures_in

    given = [Path(picture) for picture in arguments.pictures]
    folders = [path / PHOTOGRAPHS if (path / PHOTOGRAPHS).is_dir() else path for path in given]
    if not arguments.list:
        return pictures_in(folders)
    if len(given) != 1 or not given[0].is_dir():
        raise CaffeError(
            "--list", f"{len(given)} files or folders", expected="one folder that contains the list's pictures"
        )
    if not Path(arguments.list).is_file() and folders == given:
        raise FileError(arguments.list, "no such list", expected="a file with one name a line")
    names = listed(Path(arguments.list)) if folders == given else Folder(given[0]).names(arguments.list)
    there = {path.stem: path for path in pictures_in(folders)}
    missing = [name for name in names if name not in there]
    if missing:
        found = f"no picture {missing[0]}" + (f" (nor {len(missing) - 1} more of {len(names)})" if missing[1:] else "")
        raise FileError(str(folders[0]), found, expected=f"all of {arguments.list}")
    return [there[name] for name in names]


def _jobs(pictures: Sequence[Path], arguments: argparse.Namespace) -> list[Job]:
    """The pictures that this process segments, and all output paths; those that cannot be written raise before the
    first picture is segmented.

    Raises:
        FileError: a result exists, two pictures have the same result path, or it is an input picture.
    """
    folder = Path(arguments.output)
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
                found = f"the result of both {makers[output]} and {job.picture}"
                raise FileError(str(output), found, remedy="omit one of them")
            if output.resolve() in sources:
                raise FileError(str(output), "is also an input picture", remedy="choose another folder with -o")
            makers[output] = job.picture
    share = launched()
    jobs = [job for number, job in enumerate(jobs) if share.keeps(number)]
    if arguments.resume:
        jobs = [job for job in jobs if not all(output.is_file() for output in job.outputs)]
    if folder.is_dir():
        for job in jobs:
            for output in job.outputs:
                check_output(output, overwrite=arguments.force or arguments.resume)
    return jobs


def _system(arguments: argparse.Namespace) -> System:
    """The system that the options describe.

    Raises:
        CaffeError: an option that applies to none of its nets; an ensemble with DecoupledNet.
    """
    from caffe_port.segmentation import fork_nets
    from caffe_port.segmentation.crf import SETTINGS
    from caffe_port.segmentation.deconvnet import PROPOSALS, ProposalSegmenter
    from caffe_port.segmentation.ensembles import Product, Refined, kind_of
    from caffe_port.segmentation.fcn import FullyConvolutional
    from caffe_port.segmentation.inference import THRESHOLD, PassByPass, Segmenter
    from caffe_port.solver.distributed import local_device

    device = local_device(device_of(arguments.device))
    options = {**read_options(arguments), "precision": arguments.precision}
    files = [
        (arguments.prototxt, commas(arguments.weights)),
        *([(arguments.other[0], arguments.other[1:])] if arguments.other else []),
    ]
    nets = [trained_net(*pair, quiet=arguments.quiet or arguments.json, **options).to(device) for pair in files]
    for net, (_, paths) in zip(nets, files, strict=True):
        _warn_unfolded(net, paths)
    kinds = [kind_of(net) for net in nets]
    kinds[0] = arguments.system or kinds[0]
    _check_options(arguments, kinds)

    if kinds[0] == "decouplednet":
        kind = PassByPass if arguments.pass_by_pass else Segmenter
        system: System = kind(nets[0], threshold=THRESHOLD if arguments.threshold is None else arguments.threshold)
    else:
        made: dict[str, Callable[[Any], Any]] = {
            "plain": lambda net: FullyConvolutional(net, fit=arguments.fit),
            "segnet": fork_nets.SegNet,
            "pspnet": lambda net: fork_nets.PSPNet(
                net,
                base=arguments.base,
                scales=arguments.scales or (1.0,),
                mean=arguments.mean or fork_nets.PSPNET_MEAN,
            ),
            "deeplab": lambda net: fork_nets.DeepLab(net, mean=arguments.mean),
            "deconvnet": lambda net: ProposalSegmenter(
                net,
                proposals=arguments.proposals or PROPOSALS,
                smallest=arguments.smallest,
                model=arguments.model,
                aligned=bool(arguments.aligned),
            ),
        }
        first, *others = (made[kind](net) for net, kind in zip(nets, kinds, strict=True))
        system = Product(first, others[0]) if others else first
    return Refined(system, SETTINGS[arguments.crf], device=device) if arguments.crf else system


def _check_options(arguments: argparse.Namespace, kinds: Sequence[str]) -> None:
    takers: dict[str, list[str]] = {}
    for kind, options in _OPTIONS.items():
        for option in options:
            takers.setdefault(option, []).append(kind)
    for option, takes in takers.items():
        if not {*takes} & {*kinds} and getattr(arguments, option) is not None:
            found = f"a net for {' and '.join(kinds)}"
            raise CaffeError(f"--{option.replace('_', '-')}", found, expected=" or ".join(takes))
    alone = {"decouplednet": "a DecoupledNet", "segnet": "a SegNet", "pspnet": "a PSPNet"}
    if len(kinds) > 1 and {*alone} & {*kinds}:
        found = next(alone[kind] for kind in kinds if kind in alone)
        raise CaffeError("--with", found, expected="nets that score every class at every pixel")


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
