"""Sets a reference's inputs in a net, runs the net and compares.

A reference is an .npz of what another Caffe computed; ``converters/dump_reference.py`` writes one inside that Caffe.
Its keys::

    in/BLOB param/LAYER/I   set before forward          seed/BLOB  diff set before backward
    out/BLOB                data after forward          diff/BLOB pdiff/LAYER/I  diffs after backward
    sample/BLOB             4096 values of it           after/LAYER/I  a parameter that forward changed
    moments/BLOB            mean, std, min, max         switch/BLOB masksum/BLOB  pooling switches
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.errors import CaffeError, FormatError, ShapeError, nearest
from caffe_port.formats.mapping import map_file
from caffe_port.formats.sniff import refuse_others
from caffe_port.tools import compare

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.pycaffe import Net
    from caffe_port.tools.compare import Comparison

__all__ = ["Reference", "maker", "ours", "prepare", "read_noise", "replay"]

_GIVEN = ("in", "param", "seed")
_FORWARD = ("out", "sample", "moments", "masksum", "switch", "after")
_BACKWARD = ("diff", "pdiff")
_OF_PARAMETERS = ("param", "after", "pdiff")
_UNCOMPARED = ("out2",)  # a second forward, which shows a bug of the original
_EXPECTED = "keys such as in/BLOB, param/LAYER/I, out/BLOB, pdiff/LAYER/I"


class Reference:
    """A reference .npz, read array by array.

    Args:
        path: the file.
        noise: key to real Caffe's distance from itself, see :func:`read_noise`.
        forward, backward: the largest error allowed where no noise is known.

    Raises:
        FileError: it is missing or unreadable.
        FormatError: it is not an .npz, or a key is not of the form above.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        noise: Mapping[str, float] | None = None,
        *,
        forward: float = compare.FORWARD,
        backward: float = compare.BACKWARD,
    ) -> None:
        self.path, self.noise = os.fspath(path), noise or {}
        self.bounds = dict.fromkeys(_FORWARD, forward) | dict.fromkeys(_BACKWARD, backward)
        refuse_others(map_file(path, writable=False), self.path, "a reference .npz")
        try:
            self._arrays = np.load(self.path, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise FormatError(self.path, "another format, or a truncated file", expected="an .npz") from None
        for key in self._arrays.files:
            kind, _, name = key.partition("/")
            if not name or kind not in (*_GIVEN, *self.bounds, *_UNCOMPARED):
                raise FormatError(self.path, f"the key {key!r}", expected=_EXPECTED)
        if not self.keys(*self.bounds):
            raise FormatError(self.path, "no arrays to compare with", expected=_EXPECTED)

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            array = self._arrays[key]
        except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise FormatError(self.path, f"{key} cannot be read: {error}", expected="a plain array") from None
        if array.dtype.kind not in "buif":
            raise FormatError(f"{self.path}: {key}", f"an array of {array.dtype}", expected="numbers")
        return array

    def fitted(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array in the net's shape for it.

        Raises:
            ShapeError: it holds another number of values.
        """
        array = self[key]
        if array.size != prod(shape):
            raise ShapeError(f"{self.path}: {key}", f"shape {array.shape}", expected=f"{shape} as the net has")
        return array.reshape(shape)

    def __contains__(self, key: str) -> bool:
        return key in self._arrays.files

    def keys(self, *kinds: str) -> list[str]:
        """The keys of these kinds, in the file's order."""
        return [key for key in self._arrays.files if key.partition("/")[0] in kinds]

    def bound(self, key: str) -> float:
        """The largest error allowed for ``key``."""
        bound, noise = self.bounds[key.partition("/")[0]], self.noise.get(key, 0.0)
        return compare.allowance(bound, noise, np.abs(self[key]).max(initial=0.0)) if noise else bound

    @property
    def runs_backward(self) -> bool:
        return bool(self.keys(*_BACKWARD))


def read_noise(path: str | os.PathLike, case: str) -> dict[str, float]:
    """Real Caffe's distance from itself under other BLAS kernels, by key; of ``case`` in a ``noise.json``.

    Raises:
        FileError: the file is missing or unreadable. FormatError: it is not such a file, or lacks the case.
    """
    try:
        content = json.loads(bytes(map_file(path)))
    except ValueError as error:
        raise FormatError(str(path), f"not JSON: {error}", expected="a noise.json") from None
    entry = content.get(case) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not all(isinstance(v, (int, float)) for v in entry.values()):
        near = nearest(case, content) if isinstance(content, dict) else ""
        remedy = "give --case NAME" + (f" (near: {near})" if near else "")
        raise FormatError(str(path), f"no case {case!r}", remedy=remedy)
    return entry


def prepare(net: Net, reference: Reference) -> None:
    """Sets the inputs and parameters that the reference contains.

    Raises:
        CaffeError: the reference names something that the net lacks. ShapeError: a parameter has another shape.
    """
    for key in reference.keys(*_GIVEN, *reference.bounds):
        _check(net, key, reference)
    for key in reference.keys("in"):
        blob, array = net.blobs[key.removeprefix("in/")], reference[key]
        blob.reshape(*array.shape)
        blob.data[...] = array
    for key in reference.keys("param"):
        target = ours(net, key)
        target[...] = reference.fitted(key, target.shape)


def replay(net: Net, reference: Reference, *, forwards: int = 1, own_switches: bool = False) -> Iterator[Comparison]:
    """Runs the net as the reference was run and compares every array in it.

    Args:
        forwards: forward passes before the first comparison.
        own_switches: unpooling layers use the reference's switches where it has them. That excludes near ties of the
            poolings, and no value may exceed its bound.

    Yields:
        Comparisons: the forward pass's in the reference's order, then the backward pass's.

    Raises:
        CaffeError: the reference does not fit the net.
    """
    prepare(net, reference)
    for _ in range(forwards - 1):
        net.forward()
    if own_switches:
        yield from _forward_with_switches(net, reference)
    else:
        net.forward()
    for key in reference.keys(*_FORWARD):
        if not (own_switches and key.startswith("switch/")):
            theirs = reference[key]
            yield compare.compare(key, ours(net, key, theirs.size), theirs, reference.bound(key), ties=not own_switches)
    if not reference.runs_backward:
        return
    if own_switches:
        net.forward()
    net.clear_param_diffs()
    for key in reference.keys("seed"):
        diff = net.blobs[key.removeprefix("seed/")].diff
        diff[...] = reference.fitted(key, diff.shape)
    net.backward()
    for key in reference.keys(*_BACKWARD):
        yield compare.compare(key, ours(net, key), reference[key], reference.bound(key))


def _forward_with_switches(net: Net, reference: Reference) -> Iterator[Comparison]:
    """One forward pass that compares a pooling's switches, then continues with the reference's."""
    start = None
    for node, _ in net.nodes:
        keys = [f"switch/{top}" for top in node.tops if f"switch/{top}" in reference]
        if not keys:
            continue
        net.forward(start=start, end=node.name)
        for key in keys:
            yield compare.compare(key, ours(net, key), reference[key], reference.bound(key))
            top = key.removeprefix("switch/")
            mask = net.blobs[top].data
            mask[...] = compare.flat_switches(reference.fitted(key, mask.shape), _pooled_width(net, top))
        start = net.nodes[node.index + 1][0].name
    net.forward(start=start)


def ours(net: Net, key: str, sampled: int = compare.SAMPLED) -> np.ndarray:
    """The net's array for a reference key, after a run; ``sampled`` values of a ``sample/`` key."""
    kind, _, name = key.partition("/")
    if kind in _OF_PARAMETERS:
        layer, _, index = name.rpartition("/")
        blob = net.params[layer][int(index)]
        return blob.diff if kind == "pdiff" else blob.data
    if kind == "diff":
        return net.blobs[name].diff
    data = net.blobs[name].data
    if kind == "switch":
        return compare.window_switches(data, _pooled_width(net, name))
    if kind == "sample":
        return compare.sample(data, sampled)
    return {"moments": compare.moments, "masksum": compare.masksum}.get(kind, np.asarray)(data)


def maker(net: Net, blob: str) -> Node:
    """The layer that writes a blob; of an in-place blob, the last."""
    return next(node for node, _ in reversed(net.nodes) if blob in node.tops)


def _pooled_width(net: Net, mask: str) -> int:
    return net.shapes[maker(net, mask).bottoms[0]][3]


def _check(net: Net, key: str, reference: Reference) -> None:
    """Raises for a key that names nothing in the net."""
    kind, _, name = key.partition("/")
    if kind not in _OF_PARAMETERS:
        if name not in net.blobs:
            raise _unknown_key(reference, key, "a blob of the net", nearest(name, net.blobs))
        if kind == "in" and name not in net.inputs:
            raise _unknown_key(reference, key, "an input of the net", ", ".join(net.inputs))
        if kind == "switch" and (maker(net, name).type != "Pooling" or len(net.shapes[name]) != 4):
            raise _unknown_key(reference, key, "the second top of a pooling", "")
        return
    layer, _, index = name.rpartition("/")
    if layer not in net.params:
        raise _unknown_key(reference, key, "LAYER/I of a layer with parameters", nearest(layer, net.params))
    if not index.isdecimal() or int(index) >= len(net.params[layer]):
        raise _unknown_key(reference, key, f"one of the {len(net.params[layer])} parameters of layer {layer}", "")


def _unknown_key(reference: Reference, key: str, expected: str, near: str) -> CaffeError:
    remedy = "check that it is this net's reference" + (f" (near: {near})" if near else "")
    return CaffeError(reference.path, key, expected=expected, remedy=remedy)
