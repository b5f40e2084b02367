"""A net's definition as Caffe builds from it: read, upgraded, filtered for a state, with split layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from caffe_port.dialect import Dialect
from caffe_port.dialect import dialect as dialect_of
from caffe_port.errors import CaffeError
from caffe_port.schema.detect import detect_dialect
from caffe_port.schema.merge import load_proto
from caffe_port.schema.messages import SCHEMA, TEST, TRAIN
from caffe_port.schema.plugins import load_plugin
from caffe_port.schema.splits import insert_splits
from caffe_port.schema.state import filter_net, set_state
from caffe_port.schema.text import field_lines, parse_text, read_text
from caffe_port.schema.upgrade import upgrade_net, upgrade_solver

__all__ = ["Definition", "read_net", "read_solver"]

_PHASES = {"TRAIN": TRAIN, "TEST": TEST, TRAIN: TRAIN, TEST: TEST, None: None}


@dataclass(frozen=True)
class Definition:
    """A net ready to be built.

    Attributes:
        net: a NetParameter whose ``layer`` list is upgraded, filtered and split.
        dialect: the Caffe to follow.
        dialect_reason: why that one.
        path: the file's name; ``<text>`` or ``<message>`` without one.
        lines: the 1-based source line of each layer; 0 where there is none (Split layers, messages).
        generation: 0, 1 or 2: the form of the source's layers, in which its weight files are written too.
        phase: ``TRAIN`` or ``TEST``.
        synthetic: indices of layers that stand for ``input`` fields.
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
        """The place of the i-th layer, for messages: ``file:line``, or the file alone."""
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
) -> Definition:
    """A net's definition.

    Args:
        source: a prototxt file, its text, or a NetParameter.
        phase: ``"TRAIN"`` or ``"TEST"``; None takes the net's own state.
        level: of the state; layers have rules about it.
        stages: of the state.
        dialect: ``"bvlc"`` or ``"noh"``; None finds out.
        proto: another Caffe's ``caffe.proto``, whose fields and types are then known.
        plugins: Python files with layers of other Caffes, which are run.

    Raises:
        CaffeError: the file cannot be read, or the definition is wrong.
    """
    if phase not in _PHASES:
        raise CaffeError("phase", repr(phase), expected="TRAIN or TEST")
    schema = load_proto(proto) if proto else SCHEMA
    for plugin in plugins:
        load_plugin(plugin)
    net, path, lines = _read(source, schema.NetParameter)

    def place(i: int, kind: str = "layers" if net.layers else "layer") -> str:
        return _place(path, _line(lines, kind, i))

    found, reason = detect_dialect(net, place, schema.displaced)
    if dialect is not None:
        found, reason = dialect_of(dialect), "it was asked for"
    upgraded = upgrade_net(net, place)
    kind = "layer" if upgraded.generation == 2 else "layers"
    numbers = [_line(lines, kind, i) if i >= 0 else _line(lines, "input", 0) for i in upgraded.origins]

    set_state(upgraded.net, _PHASES[phase], level, stages)
    kept = filter_net(upgraded.net, lambda i: _place(path, numbers[i]))
    numbers = [numbers[i] for i in kept]
    split, origins = insert_splits(upgraded.net, lambda i: _place(path, numbers[i]))
    return Definition(
        net=split,
        dialect=found,
        dialect_reason=reason,
        path=path,
        lines=tuple(numbers[i] if i >= 0 else 0 for i in origins),
        generation=upgraded.generation,
        phase="TRAIN" if split.state.phase == TRAIN else "TEST",
        synthetic=tuple(k for k, i in enumerate(origins) if i >= 0 and upgraded.origins[kept[i]] < 0),
        inserted=tuple(k for k, i in enumerate(origins) if i < 0),
    )


def read_solver(source: str | Path | Message, *, proto: str | Path | None = None) -> Any:
    """A SolverParameter from a prototxt file, its text or a message, with ``type`` in place of ``solver_type``.

    As in Caffe, a ``snapshot_prefix`` that is missing or a folder gets the solver file's name.

    Raises:
        CaffeError: the file cannot be read, or the definition is wrong.
    """
    schema = load_proto(proto) if proto else SCHEMA
    solver, path, lines = _read(source, schema.SolverParameter)
    upgrade_solver(solver, _place(path, _line(lines, "solver_type", 0)))
    if not path.startswith("<"):
        if not solver.HasField("snapshot_prefix"):
            solver.snapshot_prefix = str(Path(path).with_suffix(""))
        elif Path(solver.snapshot_prefix).is_dir():
            solver.snapshot_prefix = str(Path(solver.snapshot_prefix) / Path(path).stem)
    return solver


def _read(source: str | Path | Message, message_class: Any) -> tuple[Any, str, dict[str, list[int]]]:
    """A message of its own, the name of its file and the lines of its fields."""
    if isinstance(source, Message):
        message = message_class()
        message.ParseFromString(source.SerializePartialToString())
        return message, "<message>", {}
    if isinstance(source, str) and _is_text(source):
        text, path = source, "<text>"
    else:
        text, path = read_text(source), str(source)
    return parse_text(text, message_class, path), path, field_lines(text)


def _is_text(source: str) -> bool:
    return any(mark in source for mark in "\n{:") and not ("\n" not in source and Path(source).exists())


def _line(lines: dict[str, list[int]], field: str, i: int) -> int:
    numbers = lines.get(field, ())
    return numbers[i] if i < len(numbers) else 0


def _place(path: str, line: int) -> str:
    return f"{path}:{line}" if line else path
