"""Detection of the Caffe that a net was written for, where the net determines it.

A net is reduced to evidence before any field of it is interpreted, since the forks give one number, and sometimes one
name, to different fields: the types of its layers and the paths of the fields that they set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.errors import DefinitionError
from caffe_port.schema import scan
from caffe_port.schema.layer_types import V1_TO_V2, v2_type

__all__ = ["Evidence", "detect_dialect", "evidence_of_fields", "evidence_of_message", "evidence_of_text", "knows"]

_DEEPEST = 32
"""Limit of nested messages, over three times as many as any Caffe uses."""

Evidence = dict[str, str]
"""The parts of a net, each with its first place: "type T", "layers type T" for a name of V1, "field a.b" of a
layer, "T with N tops", "module m" of a Python layer, "solver field f", "form layer" or "form layers"."""


def evidence_of_text(text: str, path: str) -> Evidence:
    """The evidence of a prototxt, independent of its fields' meaning; of a wrong text that of the part before.

    Args:
        path: the file's name, for the places.
    """
    fields: list[scan.Field] = []
    with suppress(DefinitionError):
        scan.read_into(fields, text, path)
    return evidence_of_fields(fields, text, path)


def evidence_of_fields(fields: list[scan.Field], text: str, path: str) -> Evidence:
    """:func:`evidence_of_text` of a text that is read already."""
    found: Evidence = {}
    lines, counted = 1, 0

    def add(what: str, at: int, name: str) -> None:
        nonlocal lines, counted
        if what not in found:
            lines, counted = lines + text.count("\n", counted, at) - text.count("\n", at, counted), at
            found[what] = f"{path}:{lines}" + (f": layer {name}" if name else "")

    def look(inside: list[scan.Field], prefix: str, layer: str) -> None:
        for name, start, value in inside:
            what = prefix + name
            if what not in found:
                add(what, start, layer)
            if isinstance(value, list):
                if what.count(".") < _DEEPEST:
                    look(value, f"{what}.", layer)
            elif what == "field python_param.module":
                add(f"module {scan.bare(value)}", start, layer)

    for field, start, layer in fields:
        add(f"solver field {field}", start, "")
        if field not in ("layer", "layers") or not isinstance(layer, list):
            continue
        found.setdefault(f"form {field}", path)
        name = next((scan.bare(str(one.value)) for one in layer if one.name == "name"), "")
        type_name = ""
        for one in layer:
            if one.name == "type" and isinstance(one.value, str):
                type_name = scan.bare(one.value)
                if field == "layers" and one.value == type_name:  # without quotes
                    add(f"layers type {type_name}", one.start, name)
                    type_name = v2_type(type_name)
                add(f"type {type_name}", one.start, name)
        look(layer, "field ", name)
        if type_name:
            add(f"{type_name} with {sum(one.name == 'top' for one in layer)} tops", start, name)
    return found


def evidence_of_message(message: Any) -> Evidence:
    """The evidence of a NetParameter or SolverParameter as read; blobs are not examined."""
    found: Evidence = {}
    if message.DESCRIPTOR.name != "NetParameter":
        return {f"solver field {field.name}": "<message>" for field, _ in message.ListFields()}
    if message.layers or message.layer:
        found[f"form {'layers' if message.layers else 'layer'}"] = "<message>"
    for layer in message.layers or message.layer:
        where = f"<message>: layer {layer.name}"
        v1 = layer.DESCRIPTOR.name == "V1LayerParameter"
        type_name = layer.LayerType.Name(layer.type) if v1 else layer.type
        if v1:
            found.setdefault(f"layers type {type_name}", where)
            type_name = v2_type(type_name)
        found.setdefault(f"type {type_name}", where)
        found.setdefault(f"{type_name} with {len(layer.top)} tops", where)
        if type_name == "Python":
            found.setdefault(f"module {layer.python_param.module}", where)
        for path in _paths(layer, ""):
            found.setdefault(f"field {path}", where)
    return found


def _paths(message: Any, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.name == "blobs":
            continue
        yield prefix + field.name
        for inner in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
            if isinstance(inner, Message):
                yield from _paths(inner, f"{prefix}{field.name}.")


def knows(dialect: Dialect, what: str) -> bool:
    """Whether a dialect has a piece of evidence; one that no dialect claims is in all that do not lack it."""
    if what in dialect.lacks:
        return False
    own = any(what in DIALECTS[name].marks for name in dialect.lineage)
    return own or not any(what in other.marks for other in DIALECTS.values())


def detect_dialect(evidence: Evidence, displaced: frozenset[str] = frozenset()) -> tuple[Dialect, str]:
    """The dialect of a net, and why.

    Args:
        evidence: see :func:`evidence_of_text`.
        displaced: names to which a user's description gave another meaning, as ``Schema.displaced``; these do not
            count as evidence.

    Returns:
        The dialect that knows everything in the net: BVLC where it does, else the only one, or the one that the
        others are made from.

    Raises:
        DefinitionError: several dialects know everything, and none is the others' base.
    """
    meant = {what: where for what, where in evidence.items() if not _is_displaced(what, displaced)}
    marked = {what for dialect in DIALECTS.values() for what in dialect.marks}
    bvlc = next(iter(DIALECTS.values()))
    proof = next((what for what in meant if what in marked), None)
    if proof is None or all(knows(bvlc, what) for what in meant):
        return bvlc, "the net has nothing that only another Caffe has"
    candidates = [d for d in DIALECTS.values() if all(knows(d, what) for what in meant)]
    first = [d for d in candidates if not d.fallback] or candidates
    first = [d for d in first if not any(o.name in d.lineage[1:] for o in first)]
    first = [d for d in first if d.only_layers == ("form layers" in evidence)] or first
    if not first:
        first = [max(DIALECTS.values(), key=lambda d: sum(what in marked and knows(d, what) for what in meant))]
    chosen = first[0]
    known = [w for w in meant if w in marked and knows(chosen, w)]
    alone = [w for w in known if sum(w in d.marks for d in DIALECTS.values()) == 1]
    proof = (alone or known or [proof])[0]
    if len(first) > 1:
        raise DefinitionError(
            meant[proof],
            f"a layer that {_in_words(proof)}, which {' and '.join(d.name for d in first)} have",
            expected="a net that determines its Caffe",
            remedy="specify it: " + " or ".join(f"--dialect {d.name} ({d.title})" for d in first),
        )
    name = "the noh fork" if chosen.name == "noh" else f"dialect {chosen.name}"
    return chosen, f"{meant[proof]} {_in_words(proof)}, which {'only ' if alone else ''}{name} has"


def _in_words(what: str) -> str:
    kind, _, name = what.removeprefix("layers ").partition(" ")
    return {
        "type": f"is of type {name}",
        "field": f"has {name}",
        "solver": f"has {name}",
        "module": f"runs module {name}",
    }.get(kind, f"is a {what}")


def _is_displaced(what: str, displaced: frozenset[str]) -> bool:
    """Whether evidence names something that ``displaced`` (Message.field, Enum.VALUE) replaced."""
    if not displaced:
        return False
    kind, _, name = what.partition(" ")
    last = name.rpartition(".")[2]
    if kind == "field":
        return any(d.rpartition(".")[2] == last for d in displaced)
    if kind == "layers":
        return f"LayerType.{last.partition(' ')[2]}" in displaced
    v1 = {f"LayerType.{v1}" for v1, v2 in V1_TO_V2.items() if v2 == name}
    return kind == "type" and (bool(v1 & displaced) or any(d.startswith(f"{name}Parameter.") for d in displaced))
