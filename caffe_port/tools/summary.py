"""The contents of a definition or a weight file without building a net: dialect, layers, shapes, unknown parts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.dialects import dialect as dialect_of
from caffe_port.errors import CaffeError
from caffe_port.graph import connect
from caffe_port.schema import TEST, TRAIN, load_proto, parse_text, read_net, scan
from caffe_port.schema.detect import detect_dialect, evidence_of_fields, knows
from caffe_port.schema.forks import fork_of
from caffe_port.schema.layer_types import known_names, known_type
from caffe_port.schema.merge import schema_of
from caffe_port.schema.state import included
from caffe_port.schema.text import read_text
from caffe_port.spec import RECORDS, infer, is_known
from caffe_port.spec.exports import NOT_EXPORTED

__all__ = ["LayerLine", "Summary", "summarize"]

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class LayerLine(NamedTuple):
    """A layer in a summary; ``parameters`` and ``macs`` are None where the definition does not determine them."""

    name: str
    type: str
    tops: list[tuple[str, tuple[Any, ...]]]
    parameters: int | None
    macs: int | None


@dataclass
class Summary:
    """Contents of a file.

    Attributes:
        kind: "net", "solver" or "weights". why: the reason for the dialect.
        phases: number of layers by phase. stages, levels: those that rules name.
        parameters, macs, memory: numbers of the parameters, multiply-adds of a pass, bytes of its blobs as float32;
            None where the definition does not determine them (data files are not read).
        unknown: types, fields and values that the dialect does not know. lines: the first line of each.
        problems: other reasons why the net cannot be built.
    """

    file: str
    kind: str
    name: str = ""
    dialect: str | None = None
    why: str = ""
    phase: str = ""
    phases: dict[str, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    lines: list[LayerLine] = field(default_factory=list)
    parameters: int | None = 0
    macs: int | None = None
    memory: int | None = None
    unknown: list[scan.Unknown] = field(default_factory=list)
    where: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    text: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        """The result for JSON; ``unknown`` also lists what makes the file unreadable."""
        unread = [f"syntax: {problem}" for problem in self.problems] if self.kind == "unreadable" else []
        return {
            **{"file": self.file, "kind": self.kind, "name": self.name, "dialect": self.dialect, "why": self.why},
            **{"phase": self.phase, "phases": self.phases, "stages": self.stages, "levels": self.levels},
            **{"layers": len(self.lines), "parameters": self.parameters, "macs": self.macs, "memory": self.memory},
            "types": dict(Counter(line.type for line in self.lines)),
            "unknown": [*map(str, self.unknown), *unread],
            "forks": sorted({one.fork for one in self.unknown if one.fork}),
            "export": self.exports,
            "problems": self.problems,
            "notes": self.notes,
        }

    @property
    def exports(self) -> dict[str, list[str]]:
        """For each export format, the layer types of this net that cannot be exported."""
        if self.kind != "net" or self.dialect is None:
            return {}
        types, dialect = dict.fromkeys(line.type for line in self.lines), DIALECTS[self.dialect]
        unknown = [name for name in types if RECORDS.find(name, dialect) is None]
        return {
            target: [name for name in types if name in refused or name in unknown]
            for target, refused in NOT_EXPORTED.items()
        }


def summarize(
    path: str | Path,
    *,
    phase: str | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    dialect: str | None = None,
    proto: str | None = None,
) -> Summary:
    """The contents of a prototxt or a weight file.

    Args:
        phase: of the net; by default TEST, or TRAIN where the net cannot be built in TEST.

    Raises:
        CaffeError: the file cannot be read, or has another format.
    """
    if _holds_text(path):
        text = read_text(path)
        return _definition(text, str(path), phase, level, tuple(stages), dialect, proto)
    return _weights(str(path))


def _holds_text(path: str | Path) -> bool:
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except OSError:
        return True  # its reader raises the error
    return not _CONTROL.search(head)


def _definition(
    text: str, path: str, phase: str | None, level: int, stages: tuple[str, ...], choice: str | None, proto: str | None
) -> Summary:
    try:
        fields = scan.fields(text, path)
    except CaffeError as error:
        return Summary(path, "unreadable", parameters=None, problems=[str(error)])
    found = Summary(path, "net", text=text, notes=_notes(text))
    chosen = _dialect(found, fields, choice, proto)
    schema = schema_of(chosen)
    if proto:
        schema = load_proto(proto, schema)
    message_class: Any = schema.NetParameter
    if _is_solver(fields, schema):
        found.kind, message_class = "solver", schema.SolverParameter
    root = message_class.DESCRIPTOR
    found.unknown = scan.unknown(fields, root, known_names(chosen))
    message = message_class()
    try:
        scan.build(fields, message)
        if not message.IsInitialized():
            raise ValueError
    except ValueError:  # protobuf's parser reports the error
        try:
            parse_text(text, message_class, path)
        except CaffeError as error:
            found.problems.append(str(error))
        found.kind = "unreadable"
        return found
    if found.kind == "net":
        _net(found, message, chosen, proto, phase, level, stages)
    return found


def _dialect(found: Summary, fields: list[scan.Field], choice: str | None, proto: str | None) -> Dialect:
    if choice is not None:
        found.dialect, found.why = choice, "requested"
        return dialect_of(choice)
    evidence = evidence_of_fields(fields, found.text, found.file)
    try:
        chosen, found.why = detect_dialect(evidence, load_proto(proto).displaced if proto else frozenset())
        found.dialect = chosen.name
    except CaffeError as error:  # several are possible, which the reason lists
        chosen = max(DIALECTS.values(), key=lambda d: (sum(knows(d, what) for what in evidence), not d.fallback))
        found.why = str(error)
    return chosen


def _is_solver(fields: list[scan.Field], schema: Any) -> bool:
    names = {one.name for one in fields}
    if names & {"layer", "layers"}:
        return False
    net, solver = (set(m.DESCRIPTOR.fields_by_name) for m in (schema.NetParameter, schema.SolverParameter))
    return len(names & solver) > len(names & net)


def _notes(text: str) -> list[str]:
    paths = [(match.start(), scan.WINDOWS) for match in (scan.WINDOWS_PATH.finditer(text) if "\\" in text else ())]
    holders = [(at, f"{holder}, a template's placeholder: fill it in first") for holder, at in scan.placeholders(text)]
    return [f"line {scan.line_of(text, at)}: {what}" for at, what in sorted(paths + holders)]


def _net(
    found: Summary,
    message: Any,
    dialect: Dialect,
    proto: str | None,
    phase: str | None,
    level: int,
    stages: tuple[str, ...],
) -> None:
    """Sets the fields that follow from the net's layers."""
    found.name = message.name
    rules = [rule for layer in message.layer or message.layers for rule in (*layer.include, *layer.exclude)]
    found.stages = sorted({stage for rule in rules for stage in (*rule.stage, *rule.not_stage)})
    found.levels = sorted({n for rule in rules for n in _levels(rule)})
    found.phases = {one: _count(message, one, level, stages) for one in ("TEST", "TRAIN")}
    found.phase = phase or "TEST"
    read = partial(read_net, level=level, stages=stages, dialect=dialect, proto=proto, name=str(found.file))
    try:
        definition = read(message, phase=found.phase)
    except CaffeError as error:
        try:
            if phase:
                raise
            definition = read(message, phase="TRAIN")
            found.phase = "TRAIN"
        except CaffeError:
            found.problems.append(str(error))
            found.parameters = None
            return
    found.phases[found.phase] = len(definition.net.layer) - len(definition.inserted)
    try:
        connect(definition)
        _fill(found, infer(definition, check=False), set(definition.inserted))
    except CaffeError as error:
        found.problems.append(str(error))
        found.parameters = None
        found.lines = [LayerLine(layer.name, layer.type, [], None, None) for layer in definition.net.layer]


def _count(message: Any, phase: str, level: int, stages: tuple[str, ...]) -> int:
    """Number of layers of the net in a phase, its inputs counted as one."""
    state = type(message.state)()
    state.CopyFrom(message.state)
    state.phase, state.level = {"TRAIN": TRAIN, "TEST": TEST}[phase], level
    state.stage.extend(stages)
    return bool(message.input) + sum(included(layer, state) for layer in message.layer or message.layers)


def _levels(rule: Any) -> list[int]:
    return [getattr(rule, name) for name in ("min_level", "max_level") if rule.HasField(name)]


def _fill(found: Summary, inferred: Any, inserted: set[int]) -> None:
    owned: set[str] = set()
    blobs: dict[str, int | None] = {}
    total: int | None = 0
    macs: int | None = 0
    for i, layer in enumerate(inferred.layers):
        if i in inserted:
            continue
        parameters: int | None = 0
        for shared, shape in _parameters(layer):
            if shared and shared in owned:
                continue
            owned.add(shared)
            parameters = _plus(parameters, prod(shape) if is_known(shape) else None)
        if layer.spec is None:
            parameters = None
        multiplied = layer.macs if layer.spec and all(map(is_known, (*layer.bottoms, *layer.tops))) else None
        total, macs = _plus(total, parameters), _plus(macs, multiplied)
        tops = list(zip(layer.message.top, layer.tops, strict=False))
        blobs.update({name: 4 * prod(shape) if is_known(shape) else None for name, shape in tops})
        found.lines.append(LayerLine(layer.message.name, layer.message.type, tops, parameters, multiplied))
    found.parameters, found.macs = total, macs
    memory: int | None = 0
    for size in blobs.values():
        memory = _plus(memory, size)
    found.memory = memory


def _parameters(layer: Any) -> list[tuple[str, tuple[int, ...]]]:
    """For each parameter blob the name under which it is shared, "" for none, and its shape."""
    specs = layer.message.param
    return [(specs[i].name if i < len(specs) else "", shape) for i, shape in enumerate(layer.params.values())]


def _plus(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


def _weights(path: str) -> Summary:
    from caffe_port.formats import open_weights

    weights = open_weights(path, writable=False)
    size = os.stat(path).st_size  # noqa: PTH116
    found = Summary(path, "weights", weights.name, notes=[f"{weights.kind}, {size:,} bytes"])
    if weights.kind == "caffemodel":
        found.notes[0] += f", generation {weights.generation}"
    found.parameters = 0
    types = [layer.type for layer in weights.layers if layer.type]
    unknown = dict.fromkeys(name for name in types if not known_type(name))
    found.unknown = [scan.Unknown("type", name, [], "", fork_of(name)) for name in unknown]
    evidence = {f"type {layer.type}": f"{path}: layer {layer.name}" for layer in reversed(weights.layers) if layer.type}
    if weights.kind == "caffemodel" and weights.generation < 2:
        evidence["form layers"] = path
    try:
        chosen, found.why = detect_dialect(evidence)
        found.dialect = chosen.name
    except CaffeError as error:
        found.why = str(error)
    if weights.kind != "caffemodel":
        found.dialect, found.why = None, "the file holds no layer types"
    for layer in weights.layers:
        blobs = [blob for blob in layer.blobs if blob is not None]
        count = sum(int(blob.size) for blob in blobs)
        found.parameters += count
        if blobs:
            tops = [(name, tuple(b.shape)) for name, b in zip(layer.names or map(str, range(99)), blobs, strict=False)]
            found.lines.append(LayerLine(layer.name, layer.type, tops, count, None))
    return found
