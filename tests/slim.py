"""The published nets as real Caffe ran them for ../shared/reference: narrow, with inputs in place of data layers."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.definitions import shapes
from caffe_port.definitions.definition import Layer, Net, Setting
from caffe_port.tools import build

__all__ = ["with_inputs"]


def narrow(path: str, width: str, batch: int = 0) -> Net:
    """A net of prototxt/ with another width and batch."""
    net = build.definitions(Setting(width=Fraction(width), batch=batch), [path])[path]
    assert isinstance(net, Net), path
    return net


def with_inputs(path: str, width: str, batch: int, phase: str, name: str = "slim") -> str:
    """The text of a narrow net called ``name`` whose data layers of ``phase`` became inputs of the same shapes."""
    net = narrow(path, width, batch)
    blobs = shapes.infer(net, phase).blobs
    data = [item for item in net.content if isinstance(item, Layer) and not item.bottoms]
    tops = [top for layer in data if layer.phase in ("", phase) for top in layer.tops]
    content = [item for item in net.content if item not in data]
    return str(replace(net, name=name, content=content, inputs={**net.inputs, **{top: blobs[top] for top in tops}}))
