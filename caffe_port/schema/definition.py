"""A net's definition as Caffe builds it: read, upgraded, filtered for a state, with Split layers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from caffe_port.dialects import Dialect
from caffe_port.dialects import dialect as dialect_of
from caffe_port.errors import CaffeError
from caffe_port.schema.detect import Evidence, detect_dialect, evidence_of_message, evidence_of_text
from caffe_port.schema.merge import load_proto, schema_of
from caffe_port.schema.messages import PHASES, TRAIN
from caffe_port.schema.plugins import load_plugin
from caffe_port.schema.settings import change
from caffe_port.schema.splits import insert_splits
from caffe_port.schema.state import filter_net, merge_state, set_state
from caffe_port.schema.text import field_lines, parse_text, read_text
from caffe_port.schema.upgrade import upgrade_net, upgrade_solver

__all__ = ["Definition", "read_net", "read_solver"]

_PHASES: dict[Any, int | None] = {None: None, **{said: n for n, name in PHASES.items() for said in (n, name)}}


@dataclass(frozen=True)
class Definition:
    """A net ready to be built.

    Attributes:
        net: a NetParameter whose ``layer`` list is upgraded, filtered and split.
        dialect: the Caffe to follow.
        dialect_reason: why this one was chosen.
        path: the file's name; ``<text>`` or ``<message>`` without one.
        lines: the 1-based source line of each layer; 0 where there is none (Split layers, messages).
        generation: 0, 1 or 2: the form of the source's layers, also of weight files written for it.
        phase: ``TRAIN`` or ``TEST``.
        synthetic: indices of layers that represent ``input`` fields.
        inserted: indices of Split layers that the source does not have.
    """

    net: Any
    dialect: Dialect
    dialect_reason: str
    path: str
    lines: tuple[int, ...]
    generation: int
    phase: str
    synthetic: tuple[int, ...] = ()
    inserted: tuple[int, ...] = ()

    def where(self, i: int) -> str:
        """The place of the i-th layer, for messages: ``file:line``, or only the file."""
        return _place(self.path, self.lines[i])


def read_net(
    source: str | Path | Message,
    *,
    phase: str | int | None = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    dialect: str | Dialect | None = None,
    proto: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    state: Any = None,
    name: str = "<message>",
) -> Definition:
    """A net's definition.

    Args:
        source: a prototxt file, its text, or a NetParameter.
        phase: ``"TRAIN"`` or ``"TEST"``; None uses the net's own state.
        level, stages: of the state, which the layers' rules refer to.
        dialect: its name, such as ``"bvlc"`` or ``"noh"``; None detects it.
        proto: another Caffe's ``caffe.proto``, whose fields and types are then accepted.
        plugins: Python files with layers of other Caffes, which are run.
        state: a solver's NetState for this net. It is merged over the net's own, which is merged over ``phase``.
        name: the file that a NetParameter was read from, for messages.

    Raises:
        CaffeError: the file cannot be read, or the definition is wrong.
    """
    if phase not in _PHASES:
        raise CaffeError("phase", repr(phase), expected="TRAIN or TEST")
    for plugin in plugins:
        load_plugin(plugin)
    opened = _open(source, name)
    if dialect is not None:
        found, reason = dialect_of(dialect), "requested"
    else:
        found, reason = detect_dialect(opened.evidence(), load_proto(proto).displaced if proto else frozenset())
    schema = schema_of(found)
    read = _read(opened, (load_proto(proto, schema) if proto else schema).NetParameter)

    upgraded = upgrade_net(read.message, read.where)
    net, lines = upgraded.net, [read.line(i) for i in upgraded.origins]
    if state is None:
        set_state(net, _PHASES[phase], level, stages)
    else:
        merge_state(net, _PHASES[phase], state)
    absent = {blob: f"give input {blob} an input_shape" for blob in read.message.input}
    layers = [
        (_describe(read.path, line, layer), list(layer.top)) for line, layer in zip(lines, net.layer, strict=True)
    ]
    kept = filter_net(net, lambda i: layers[i][0])
    for i in set(range(len(layers))).difference(kept):
        place, tops = layers[i]
        absent.update(dict.fromkeys(tops, f"it is computed in another phase, level or stage ({place})"))
    net, origins = insert_splits(net, lambda i: layers[kept[i]][0], absent)
    return Definition(
        net=net,
        dialect=found,
        dialect_reason=reason,
        path=read.path,
        lines=tuple(lines[kept[i]] if i >= 0 else 0 for i in origins),
        generation=upgraded.generation,
        phase="TRAIN" if net.state.phase == TRAIN else "TEST",
        synthetic=tuple(k for k, i in enumerate(origins) if i >= 0 and upgraded.origins[kept[i]] < 0),
        inserted=tuple(k for k, i in enumerate(origins) if i < 0),
    )


def read_solver(
    source: str | Path | Message,
    *,
    dialect: str | Dialect | None = None,
    proto: str | Path | None = None,
    settings: Iterable[str] = (),
) -> Any:
    """A SolverParameter from a prototxt file, its text or a message, with ``type`` in place of ``solver_type``.

    ``dialect`` is that of its fields; None detects it from them.

    ``settings`` are fields to change, see :func:`caffe_port.schema.settings.change`. As in Caffe, a ``snapshot_prefix``
    that is missing or a folder gets the solver file's name.

    Raises:
        CaffeError: the file cannot be read, or the definition is wrong.
    """
    opened = _open(source)
    schema = schema_of(dialect_of(dialect) if dialect is not None else detect_dialect(opened.evidence())[0])
    read = _read(opened, (load_proto(proto, schema) if proto else schema).SolverParameter)
    solver = read.message
    for setting in settings:
        change(solver, setting)
    upgrade_solver(solver, read.path)
    if isinstance(read.file, Path):
        if not solver.HasField("snapshot_prefix"):
            solver.snapshot_prefix = str(read.file.with_suffix(""))
        elif os.path.isdir(solver.snapshot_prefix):  # noqa: PTH112, which raises for invalid names
            solver.snapshot_prefix = str(Path(solver.snapshot_prefix) / read.file.stem)
    return solver


@dataclass(frozen=True)
class _Opened:
    """A source before parsing: a text with its file name, or a message."""

    text: str
    path: str
    file: Path | None = None
    message: Any = None

    def evidence(self) -> Evidence:
        return evidence_of_message(self.message) if self.message is not None else evidence_of_text(self.text, self.path)


def _open(source: str | Path | Message, name: str = "<message>") -> _Opened:
    if isinstance(source, Message):
        return _Opened("", name, message=source)
    file = None if _is_text(source) else Path(source)
    return _Opened(str(source), "<text>") if file is None else _Opened(read_text(file), str(source), file)


@dataclass(frozen=True)
class _Source:
    """A copy of a message, its source, and the lines of its top-level fields."""

    message: Any
    path: str
    lines: dict[str, list[int]]
    file: Path | None = None

    def line(self, i: int) -> int:
        """The line of the i-th layer, or of the inputs for -1; 0 if unknown."""
        field = "input" if i < 0 else "layers" if self.message.layers else "layer"
        lines = self.lines.get(field, [])
        return lines[max(i, 0)] if max(i, 0) < len(lines) else 0

    def where(self, i: int) -> str:
        """The place of the i-th layer, or of the inputs for -1, for messages."""
        if i < 0:
            return _place(self.path, self.line(i))
        return _describe(self.path, self.line(i), (self.message.layers or self.message.layer)[i])


def _read(source: _Opened, message_class: Any) -> _Source:
    if source.message is not None:
        message = message_class()
        message.ParseFromString(source.message.SerializePartialToString())
        return _Source(message, source.path, {})
    message = parse_text(source.text, message_class, source.path)
    return _Source(message, source.path, field_lines(source.text), source.file)


def _is_text(source: str | Path) -> bool:
    """Whether a string is prototxt rather than the name of a file."""
    if isinstance(source, Path) or source.endswith(".prototxt"):
        return False
    return "\n" in source or (("{" in source or ":" in source) and not os.path.exists(source))  # noqa: PTH110


def _place(path: str, line: int) -> str:
    return f"{path}:{line}" if line else path


def _describe(path: str, line: int, layer: Any) -> str:
    """The place and the name of a layer of any generation."""
    name = layer.name or (layer.layer.name if hasattr(layer, "layer") else "")
    return f"{_place(path, line)}: layer {name}" if name else f"{_place(path, line)}: a layer without a name"
