"""An exported file with 8-bit weights and activations, by onnxruntime's quantizer, calibrated on given pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.data.picture_files import opened_picture
from caffe_port.errors import CaffeError
from caffe_port.export.check import Agreement
from caffe_port.export.onnx_check import session
from caffe_port.export.onnx_graph import Value
from caffe_port.export.onnx_picture import Preprocessing

__all__ = ["QUANTIZED", "Feed", "pictures_of", "quantize"]

QUANTIZED = ("Convolution", "Deconvolution", "InnerProduct", "Pooling", "ReLU", "Concat", "Eltwise")
"""Layers that compute in 8 bits; sums of squares, probabilities and boxes stay float."""
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Concat", "Add")

_MOST_PICTURES = 400

Feed = Callable[[], dict[str, Any]]
"""Reads the inputs of the file for one picture."""


def pictures_of(
    paths: Sequence[str | os.PathLike], inputs: Sequence[Value], preprocessing: Preprocessing
) -> list[Feed]:
    """What reads each picture, of many every n-th, for a graph that takes pictures.

    Raises:
        CaffeError: there is none, or the graph needs more than a picture.
    """
    channels = inputs[0].shape[-1] if len(inputs) == 1 else 0
    if channels not in (1, 3):
        found = ", ".join(f"{v.name} {v.shape}" for v in inputs)
        raise CaffeError("export: int8", f"inputs {found}", expected="one, a picture of 1 or 3 channels")
    if not paths:
        raise CaffeError("export: int8", "no pictures", expected="some to calibrate with")

    def feed(path: str | os.PathLike) -> dict[str, Any]:
        with opened_picture(os.fspath(path)) as opened:
            picture = np.asarray(opened.convert("RGB" if channels == 3 else "L"))
        picture = picture.reshape(1, *picture.shape[:2], channels)
        return {inputs[0].name: np.ascontiguousarray(picture if preprocessing.rgb else picture[..., ::-1])}

    return [partial(feed, path) for path in paths[:: -(-len(paths) // _MOST_PICTURES)]]


def quantize(source: Path, target: Path, feeds: Sequence[Feed], nodes: Sequence[str]) -> Agreement:
    """Write ``source`` in 8 bits, with its metadata.

    Every second picture calibrates, the others are compared; with fewer than four, all do both.

    Args:
        nodes: the names of those to quantize.

    Raises:
        CaffeError: the quantizer cannot, or the result cannot be run.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if not nodes:
        expected = f"one of {', '.join(QUANTIZED)}"
        raise CaffeError("export: int8", "no layer that computes in 8 bits", expected=expected)
    apart = len(feeds) >= 4
    first, second = (feeds[::2], feeds[1::2]) if apart else (feeds, feeds)
    try:
        with _quiet():
            quantize_static(
                os.fspath(source),
                os.fspath(target),
                _reader(first),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,  # sums of two products of 8 bits do not fit where a processor has no VNNI
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_quantize=list(nodes),
            )
        agreement = _compared(source, target, first, second, apart)
    except CaffeError:
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        found = f"onnxruntime's quantizer: {said.strip()[:200]}"
        raise CaffeError("export: int8", found, remedy="--dtype fp32 writes the net as it is") from None
    facts = {p.key: p.value for p in onnx.load(source, load_external_data=False).metadata_props}
    model = onnx.load(target)
    onnx.helper.set_model_props(model, facts | {"caffe_port.int8": str(agreement)})
    onnx.save(model, target)
    return agreement


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _reader(feeds: Sequence[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self.left, None)
            return None if feed is None else feed()

    return Reader()


def _compared(source: Path, target: Path, first: Sequence[Feed], second: Sequence[Feed], apart: bool) -> Agreement:
    before, after = session(source), session(target)
    names = [v.name for v in before.get_outputs()]
    equal, found, errors = (dict[str, list[float]]() for _ in range(3))
    for feed in second:
        given = feed()
        for name, a, b in zip(names, before.run(names, given), after.run(names, given), strict=True):
            if a.shape[:2] == (1, 1) and a.shape[-1] == 7:
                found.setdefault(name, []).extend(_found_again(a.reshape(-1, 7), b.reshape(-1, 7)))
            elif a.ndim > 1 and a.shape[1] > 1:
                equal.setdefault(name, []).append(float((a.argmax(1) == b.argmax(1)).mean()))
            else:
                off = np.abs(a - b).mean() / (np.abs(a).max(initial=0) or 1) if a.shape == b.shape else 1.0
                errors.setdefault(name, []).append(float(off))
    return Agreement(
        len(first),
        len(second),
        apart,
        *({name: float(np.mean(v)) for name, v in of.items() if v} for of in (equal, found, errors)),
    )


def _found_again(before: Any, after: Any) -> list[float]:
    """For each object (item, label, score, box) of a score over a half whether ``after`` has it, too: half covered."""
    found = []
    for row in before[before[:, 2] > 0.5]:
        same = after[(after[:, :2] == row[:2]).all(1)]
        sides = np.minimum(same[:, 5:], row[5:]) - np.maximum(same[:, 3:5], row[3:5])
        inside = sides.clip(min=0).prod(1)
        both = (same[:, 5:] - same[:, 3:5]).prod(1) + (row[5:] - row[3:5]).prod() - inside
        found.append(float((inside > 0.5 * both).any()))
    return found
