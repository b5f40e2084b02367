"""A net as a readable PyTorch file: plain modules and one forward pass, with the weights in a .safetensors beside it.

Every layer is written by one function (:mod:`caffe_port.export.source_layers`); what torch lacks is in the file as a
function or a module of a few lines (:mod:`caffe_port.export.source_helpers`). Both files are checked, by a process of
their own that cannot import this package, before they get their final names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.console import info
from caffe_port.errors import CaffeError
from caffe_port.export import source_regions, source_windows  # noqa: F401
from caffe_port.export.inputs import in_steps, watched_bottoms
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.parts import (
    WITH_WEIGHTS,
    Exported,
    Nodes,
    fixed_batch,
    folded_weights,
    followers,
    needed_nodes,
    new_folder_beside,
    refuse_layers,
    require,
    reset_shapes,
    wanted_outputs,
)
from caffe_port.export.source_check import check
from caffe_port.export.source_code import Code, Unpacked, Var, is_call, writer_of
from caffe_port.export.source_layers import behind
from caffe_port.export.source_text import Program, text_of
from caffe_port.formats.atomic import check_output
from caffe_port.formats.safetensors import write_safetensors
from caffe_port.paths import exists

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.layers.base import Layer
    from caffe_port.net import Net

__all__ = ["source", "weights_beside"]

_WRAPS = frozenset(
    (
        *("ReLU", "ReLU6", "PReLU", "Sigmoid", "TanH", "ELU", "AbsVal", "BNLL", "Clip", "Swish", "Dropout", "Softmax"),
        *("BatchNorm", "BN", "Scale", "Bias"),
    )
)
"""Layers that are written around the expression of their bottom, where nothing else reads it."""


def weights_beside(path: str | os.PathLike) -> str:
    """The file of the weights of a PyTorch file."""
    return str(Path(path).with_suffix(".safetensors"))


def source(
    net: Net,
    path: str | os.PathLike,
    *,
    dynamic_batch: bool = True,
    dtype: str = "fp32",
    outputs: Sequence[str] | None = None,
    fold: bool = True,
    overwrite: bool = False,
    verify: bool = True,
    reference: str | os.PathLike | None = None,
    preprocessing: Preprocessing | None = None,
) -> Exported:
    """Write a net as a PyTorch file NAME.py, and its weights as NAME.safetensors.

    Args:
        net: in phase TEST; its outputs must not depend on data layers or losses.
        dynamic_batch: check another batch size than the definition's too.
        dtype: of the weights in their file, "fp32" or "fp16"; the net computes in float32 with both.
        outputs: output blobs instead of the net's; layers that they do not need are omitted.
        fold: fold normalizations into the weights before them; else a BatchNorm and the Scale after it are one module.
        overwrite: replace existing files.
        verify: run the file in a process of its own, compare with the net, and keep it only if the numbers agree.
        reference: an .npz of another Caffe's numbers to compare with as well (as ``parity`` takes it).
        preprocessing: what the file's function for pictures does; by default it subtracts nothing.

    Raises:
        CaffeError: a layer that cannot be written, by name, before anything is written; an unknown blob or dtype; or
            the numbers do not agree.
        FileError: a file exists or cannot be written.
    """
    target, weights = Path(path), Path(weights_beside(path))
    for file in (target, weights):
        check_output(file, overwrite=overwrite)
    if target.suffix != ".py":
        raise CaffeError(str(target), f"the extension {target.suffix!r}", expected=".py")
    if dtype not in ("fp32", "fp16"):
        raise CaffeError("dtype", repr(dtype), expected="fp32 or fp16")
    wanted = wanted_outputs(net, outputs)
    reset_shapes(net)
    nodes = needed_nodes(net, wanted)
    refuse_layers(net, nodes, lambda node, layer: _known(net, node, layer), "export to Python", _WAYS_ON)
    if dynamic_batch and (why := fixed_batch(net, nodes)):
        info(f"the batch size is fixed: {why}")
        dynamic_batch = False
    build = _Writer(net, nodes, wanted, fold=fold)
    with torch.no_grad():
        build.run()
    program = build.program(target.stem, preprocessing, build.outputs)
    if verify and build.code.arrays:
        require("safetensors", "pip install safetensors, with which the file reads its weights; or --no-check")
    text = text_of(program)
    inputs = {var.blob: var.shape for var in build.inputs}
    result = Exported(str(target), list(inputs), wanted, len(program.body) + 1, build.folded)
    arrays = {key: array.astype("float16") if dtype == "fp16" else array for key, array in build.code.arrays.items()}
    with new_folder_beside(str(target)) as folder:
        written = folder / target.name
        written.write_text(text, encoding="utf-8")
        if arrays:
            write_safetensors(folder / weights.name, arrays)
        if verify:
            watched, observed = watched_bottoms(nodes), None
            if watched:
                observed = folder / f"{target.stem}.observed.py"
                observed.write_text(text_of(build.observed(target.stem)), encoding="utf-8")
            result.checked = check(
                written,
                net,
                wanted,
                inputs,
                dtype,
                reference,
                dynamic_batch=dynamic_batch,
                watched=watched,
                observed=observed,
            )
        _move([folder / weights.name] * bool(arrays) + [written], target.parent)
    return result


def _move(files: Sequence[Path], folder: Path) -> None:
    """Move files into place, the weights first; if one fails, remove those that replaced none."""
    new: list[Path] = []
    try:
        for file in files:
            place = folder / file.name
            existed = exists(place)
            file.replace(place)
            new += [] if existed else [place]
    except OSError:
        for place in new:
            place.unlink(missing_ok=True)
        raise


_WAYS_ON = (
    "cut the net before them with --outputs BLOB, use -o NAME.pt2, "
    "or give a plugin's layer a method source(code, *bottoms)"
)


def _known(net: Net, node: Node, layer: Layer) -> bool:
    return node.type == "Input" or writer_of(layer, net.dialect) is not None


class _Writer:
    """Writes the nodes in order.

    Attributes:
        code: the module. inputs, outputs: its variables. folded: see :class:`Exported`.
    """

    def __init__(self, net: Net, nodes: Nodes, wanted: Sequence[str], *, fold: bool) -> None:
        self.net, self.nodes, self.wanted, self.fold = net, nodes, wanted, fold
        self.code = Code()
        self.inputs: list[Var] = []
        self.outputs: list[Var] = []
        self.folded: dict[str, str] = {}
        self._merged: set[str] = set()
        self._bottoms: dict[int, list[Var]] = {}
        self._tops: dict[int, list[Var]] = {}
        self._others: dict[int, list[tuple[Var, Var]]] = {}
        """Blobs that an in-place layer writes over because they share its top's memory: before and after."""

    def run(self) -> None:
        self._versions()
        for i, (node, layer) in enumerate(self.nodes):
            if node.type != "Input" and node.key not in self._merged:
                self._write(i, node, layer)
            for before, after in self._others.get(node.index, ()):
                (top, *_) = self._tops[node.index]
                same = before.shape == top.shape
                self.code.assign(str(top) if same else f"{top}.reshape({before}.shape)", after)

    def _versions(self) -> None:
        """Make the variables of every node."""
        now: dict[str, Var] = {}
        besides = self.net.caffe_gradients.besides
        for node, _ in self.nodes:
            self._bottoms[node.index] = [now[b] for b in node.bottoms]
            for k, var in enumerate(self._bottoms[node.index]):
                var.readers.append((node.type, k))
            self._tops[node.index] = [self.code.new(top, self.net.shapes[top]) for top in node.tops]
            if node.type == "Input":
                self.inputs += [var for var in self._tops[node.index] if var.blob in self.net.graph.inputs]
            now.update(zip(node.tops, self._tops[node.index], strict=True))
            for name in besides.get(node.index, ()):
                if name in now:
                    after = self.code.new(name, self.net.shapes[name])
                    self._others.setdefault(node.index, []).append((now[name], after))
                    now[name] = after
        self.outputs = [now[name] for name in self.wanted]
        for var in self.outputs:
            var.wanted = True

    def _write(self, i: int, node: Node, layer: Any) -> None:
        function = writer_of(layer, self.net.dialect)
        assert function is not None
        bottoms, tops = self._bottoms[node.index], self._tops[node.index]
        more: dict[str, Any] = {}
        if self.fold and node.type in WITH_WEIGHTS and len(bottoms) == 1:
            absorbed = followers(self.net, self.nodes, i, self.wanted)
            if absorbed:
                more = {name: np.asarray(array) for name, array in folded_weights(layer, absorbed).items()}
                self.folded.update((other.name, node.name) for other, _ in absorbed)
                tops = self._pass_over(tops, absorbed)
        elif node.type == "BatchNorm" and layer.uses_blobs() and layer.scale is None:
            scales = followers(self.net, self.nodes, i, self.wanted)[:1]
            if scales and scales[0][1].type == "Scale":
                more = {"weight": scales[0][1].weight, "bias": scales[0][1].bias}
                tops = self._pass_over(tops, scales)
        self.code.begin(node.name or node.type, tops, wraps=node.type in _WRAPS)
        made = function(self.code, layer, *bottoms, **more)
        raw = layer.top_shapes(*(var.shape for var in bottoms))
        if isinstance(made, Unpacked):
            self.code.assign(made, *tops)
        else:
            parts = [made] if isinstance(made, str) else made
            for k, text in (part if isinstance(part, tuple) else (i, part) for i, part in enumerate(parts)):
                self.code.assign(_with_axes(text, len(tops[k].shape) - len(raw[k])), tops[k])

    def _pass_over(self, tops: list[Var], absorbed: Nodes) -> list[Var]:
        """The tops of the last absorbed layer, which those before and ``tops`` then are, too."""
        last = self._tops[absorbed[-1][0].index]
        for var in (*tops, *(self._tops[node.index][0] for node, _ in absorbed[:-1])):
            self.code.assign(str(last[0]), var)
        self._merged.update(node.key for node, _ in absorbed)
        return last

    def observed(self, stem: str) -> Program:
        """The same steps, which give the watched blobs behind the outputs."""
        steps = [node for node, layer in self.nodes if in_steps(layer)]
        return self.program(stem, None, [*self.outputs, *(var for node in steps for var in self._bottoms[node.index])])

    def program(self, stem: str, preprocessing: Preprocessing | None, outputs: Sequence[Var]) -> Program:
        """What the file says."""
        arguments, body, returned = self.code.forward(self.inputs, outputs)
        return Program(
            net=self.net,
            stem=stem,
            code=self.code,
            inputs=self.inputs,
            outputs=outputs,
            arguments=arguments,
            body=body,
            returned=returned,
            folded=self.folded,
            preprocessing=preprocessing,
        )


def _with_axes(text: str, axes: int) -> str:
    """A layer's result with the axes of its blob, four in some Caffes."""
    if axes <= 0:
        return text
    return behind(text if is_call(text) or re.fullmatch(r"\W?\d+\W?", text) else f"({text})", axes)
