"""detect: pictures in, objects out, by an SSD, Faster R-CNN or R-FCN net; scored against VOC's annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caffe_port.console import number
from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools.cli import (
    EITHER,
    FOLDER,
    Parser,
    count,
    numbers,
    print_json,
    read_options,
    run,
    size,
    table,
    trained_net,
)
from caffe_port.tools.progress import each, print_line
from caffe_port.tools.train import device_of

if TYPE_CHECKING:
    import numpy as np

    from caffe_port.detection.detector import Detector
    from caffe_port.detection.objects import Found
    from caffe_port.detection.regions import RegionDetector

__all__ = ["main"]

THRESHOLD, SCORED_THRESHOLD = 0.5, 0.01


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "detect",
        "Find objects with a trained SSD, Faster R-CNN or R-FCN net. Writes OUT/detections.json, a list of pictures"
        " with their objects, boxes in pixels; on request, VOC's result files and pictures with the boxes drawn.",
        example="picture.jpg --prototxt deploy.prototxt --weights model.caffemodel -o found --draw",
    )
    add = parser.add_argument
    add("pictures", metavar="PICTURE", nargs="+", help="a picture, or a folder of them")
    add(
        "--prototxt",
        metavar="NET",
        required=True,
        help="the deploy net: with DetectionOutput, or with cls_prob and bbox_pred",
    )
    add("--weights", metavar="FILE", required=True, help="its parameters: .caffemodel, .safetensors, .pth, .npz or .h5")
    parser.add_output("OUT", kind=FOLDER, help="the folder for the results; created if missing")
    add("--voc", action="store_true", help="also write OUT/comp4_det_test_CLASS.txt, as VOC's kit reads them")
    add("--draw", action="store_true", help="also write OUT/NAME.png, the picture with the boxes over it")
    add("--labels", metavar="FILE", help="names of the classes: SSD's labelmap.prototxt, or a name a line from label 1")
    add(
        "--threshold",
        type=float,
        metavar="S",
        help=f"smallest score of an object; default: {THRESHOLD}, with --annotations {SCORED_THRESHOLD}",
    )
    add("--mean", metavar="B,G,R", help="subtracted; default: what the net was trained with")
    add("--scale", type=float, metavar="F", help="multiplied afterwards; default: what the net was trained with")
    add("--input-size", metavar="HxW", help="of the net's input; default: as in its definition")
    add("--cfg", metavar="YML", help="Faster R-CNN: settings as py-faster-rcnn's experiments/cfgs/*.yml has them")
    add("--batch", type=count, default=1, metavar="N", help="pictures in a pass; default: %(default)s")
    add("--annotations", metavar="FOLDER", help="score against VOC's NAME.xml in this folder: mean average precision")
    parser.add_device()
    parser.add_precision()
    parser.add_json("print a line of JSON for each picture, and one of the scores")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("pictures", kind=EITHER)
    parser.reads("prototxt", "weights", "labels", "cfg")
    parser.reads("annotations", kind=FOLDER)
    run(_detect, parser, argv)


def _detect(arguments: argparse.Namespace) -> None:
    from caffe_port.detection.objects import dump_json, moved, to_json
    from caffe_port.segmentation.voc import pictures_in, read_picture

    if (arguments.voc or arguments.draw) and not arguments.output:
        raise CaffeError("--voc and --draw", "no -o", expected="a folder for the results")
    pictures = pictures_in(arguments.pictures)
    _check_names(pictures)
    truth = _truth(arguments, pictures)
    detector = _detector(arguments)
    if detector.batch and arguments.batch > detector.batch:
        raise CaffeError(
            "--batch", f"{arguments.batch}", expected=f"{detector.batch}: as many pictures as the net takes"
        )
    names = _names(arguments, detector)
    outputs = _outputs(arguments, pictures, names)
    results: dict[str, list[Found]] = {}
    records = []
    batches = [pictures[i : i + arguments.batch] for i in range(0, len(pictures), arguments.batch)]
    for batch in each(batches, "detect", quiet=arguments.quiet):
        shown = [read_picture(path) for path in batch]
        for path, picture, objects in zip(batch, shown, detector(*shown), strict=True):
            results[path.stem] = objects
            records.append(to_json(str(path), objects, names))
            if arguments.draw:
                _draw(outputs[path.stem], picture, objects, names, overwrite=arguments.force)
            if arguments.json:
                print_json(records[-1])
            elif not arguments.quiet:
                found = (f"{o['class']} {number(o['score'], '.2f')}" for o in records[-1]["objects"][:8])
                more = len(objects) - 8
                print_line(f"{path.name}  {', '.join(found) or 'nothing'}{f' and {more} more' if more > 0 else ''}")
    if arguments.output:
        with atomic_write(outputs["detections.json"], overwrite=arguments.force) as file:
            file.write(dump_json(records))
    in_voc = {stem: [moved(o, detector.first_pixel) for o in objects] for stem, objects in results.items()}
    if arguments.voc:
        _write_voc(outputs, in_voc, names, overwrite=arguments.force)
    if truth is not None:
        _score(arguments, in_voc, truth, names)


def _check_names(pictures: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in pictures:
        if path.stem in seen:
            raise FileError(str(path), f"the same name as {seen[path.stem]}", remedy="omit one of them")
        seen[path.stem] = path


def _detector(arguments: argparse.Namespace) -> Detector | RegionDetector:
    from caffe_port.data import rcnn_settings
    from caffe_port.detection.detector import detector_of
    from caffe_port.detection.regions import RegionDetector
    from caffe_port.schema import read_net

    if arguments.cfg:
        rcnn_settings.read(arguments.cfg)
    options = read_options(arguments)
    definition = read_net(arguments.prototxt, phase="TEST", **options)
    if (given_size := size("--input-size", arguments.input_size)) is not None:
        inputs = [layer for layer in definition.net.layer if layer.type == "Input"]
        if len(inputs) != 1 or len(inputs[0].input_param.shape[0].dim) != 4:
            raise CaffeError("--input-size", f"{len(inputs)} inputs", expected="a net of one input of 4 axes")
        inputs[0].input_param.shape[0].dim[2:] = given_size
    mean = numbers("--mean", arguments.mean)
    quiet = arguments.quiet or arguments.json
    net = trained_net(definition, arguments.weights, quiet=quiet, precision=arguments.precision)
    threshold = arguments.threshold
    if threshold is None:
        threshold = SCORED_THRESHOLD if arguments.annotations else THRESHOLD
    given_net = net.to(device_of(arguments.device))
    detector = detector_of(given_net, mean=mean or None, scale=arguments.scale, threshold=threshold)
    if arguments.cfg and not isinstance(detector, RegionDetector):
        raise CaffeError("--cfg", "an SSD net", expected="a Faster R-CNN or R-FCN net")
    if given_size and isinstance(detector, RegionDetector):
        raise CaffeError("--input-size", "a Faster R-CNN net, of any size", expected="TEST.SCALES in the file of --cfg")
    given = detector.preparation
    if not arguments.quiet and not arguments.json and not (mean and arguments.scale is not None):
        print_line(f"mean {', '.join(map(number, given.mean))}, scale {number(given.scale)}: {given.because}")
    return detector


def _names(arguments: argparse.Namespace, detector: Detector | RegionDetector) -> dict[int, str]:
    from caffe_port.detection.objects import read_labels
    from caffe_port.segmentation.voc import CLASSES

    if not arguments.labels:
        voc = len(detector.classes) == len(CLASSES)
        return {label: CLASSES[label - 1] if voc and label else str(label) for label in detector.classes}
    names = read_labels(arguments.labels)
    missing = [label for label in detector.classes if label not in names]
    if missing:
        raise CaffeError(arguments.labels, f"no name of label {missing[0]}", expected=f"labels {detector.classes}")
    return {label: names[label] for label in detector.classes}


def _truth(arguments: argparse.Namespace, pictures: Sequence[Path]) -> dict | None:
    from caffe_port.detection.voc import read_annotation

    if not arguments.annotations:
        return None
    folder = Path(arguments.annotations)
    return {path.stem: read_annotation(folder / f"{path.stem}.xml") for path in pictures}


def _outputs(arguments: argparse.Namespace, pictures: Sequence[Path], names: dict[int, str]) -> dict[str, Path]:
    """All output paths, by the picture's stem, the class's name, or "detections.json"; checked before any work."""
    if not arguments.output:
        return {}
    folder = Path(arguments.output)
    outputs = {"detections.json": folder / "detections.json"}
    if arguments.draw:
        outputs |= {path.stem: folder / f"{path.stem}.png" for path in pictures}
    if arguments.voc:
        wrong = [name for name in names.values() if "/" in name or name in ("", ".", "..")]
        if wrong:
            raise CaffeError("--voc", f"a class named {wrong[0]!r}", expected="names that are valid in file names")
        outputs |= {f"class {name}": folder / f"comp4_det_test_{name}.txt" for name in names.values()}
    sources = {path.resolve() for path in pictures}
    for output in outputs.values():
        if output.resolve() in sources:
            raise FileError(str(output), "is also an input picture", remedy="choose another folder with -o")
        if folder.is_dir():
            check_output(output, overwrite=arguments.force)
    folder.mkdir(parents=True, exist_ok=True)
    return outputs


def _draw(path: Path, picture: np.ndarray, objects: Sequence[Found], names: dict[int, str], *, overwrite: bool) -> None:
    from PIL import Image

    from caffe_port.detection.objects import drawn
    from caffe_port.segmentation.voc import palette

    with atomic_write(path, overwrite=overwrite) as file:
        Image.fromarray(drawn(picture, objects, names, palette())).save(file, "PNG")


def _write_voc(outputs: dict[str, Path], results: dict, names: dict[int, str], *, overwrite: bool) -> None:
    from caffe_port.detection.objects import voc_lines

    for label, name in names.items():
        with atomic_write(outputs[f"class {name}"], overwrite=overwrite) as file:
            file.write(voc_lines(list(results.items()), label).encode())


def _score(arguments: argparse.Namespace, results: dict, truth: dict, names: dict[int, str]) -> None:
    from caffe_port.detection.voc import mean_precision

    unknown = sorted({n for t in truth.values() for n in t.names} - {*names.values()})
    scores = mean_precision(results, truth, names)
    if arguments.json:
        print_json({"average_precision": scores, "unknown": unknown})
        return
    if unknown:
        print_line(f"classes of the annotations that the net does not have: {', '.join(unknown)}")
    rows = [(name, f"{of['11-point']:.4f}", f"{of['area']:.4f}") for name, of in scores.items()]
    print_line(table(("class", "11-point", "area"), rows, right=(1, 2)))


if __name__ == "__main__":
    main()
