"""Another Caffe's ``caffe.proto`` merged with ours, so that its prototxts and weight files can be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.errors import DefinitionError, FileError
from caffe_port.schema.messages import SCHEMA, Schema
from caffe_port.schema.protoparser import PACKAGE, parse_proto

__all__ = ["load_proto", "schema_of"]

_PRIVATE = 100_000
"""Added to the number of a field or value of ours whose number their file uses; no Caffe uses such numbers."""


def schema_of(dialect: Dialect) -> Schema:
    """The messages of a dialect's files: ours with the additions of its lineage."""
    schema = SCHEMA
    for name in reversed(dialect.lineage):
        proto = DIALECTS[name].proto
        if proto is not None:
            schema = load_proto(proto, schema)
    return schema


def load_proto(source: str | Path, over: Schema = SCHEMA) -> Schema:
    """The messages of another Caffe's description together with ours, or with those of ``over``.

    Messages, fields and enum values that ours lack are added. Where a field or a value has another number or type in
    their file, theirs is used; where their number belongs to a name of ours, ours gets another number.
    Where only the label or the default differs, ours is used: the layers here depend on it. In forks older than 2015
    ``LayerParameter`` is today's ``V1LayerParameter``: messages are matched by their role in a net.

    Args:
        source: a ``.proto`` file, or its text (a str with a brace).

    Raises:
        FileError: the file cannot be read.
        DefinitionError: it is not a proto2 description; with file:line:column.
    """
    if isinstance(source, str) and "{" in source:
        return _merged(source, "<proto>", over)
    try:
        text = Path(source).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FileError(str(source), error.strerror or "cannot be read", expected="a caffe.proto") from None
    return _merged(text, str(source), over)


@cache
def _merged(text: str, path: str, over: Schema) -> Schema:
    theirs = parse_proto(text, path, over.file)
    _match_names(theirs)
    merged = FileDescriptorProto()
    merged.CopyFrom(over.file)
    displaced: set[str] = set()
    _merge_all(merged.enum_type, theirs.enum_type, _merge_enum, displaced)
    _merge_all(merged.message_type, theirs.message_type, _merge_message, displaced)
    _carry_v1_fields(merged, over)
    try:
        return Schema(merged, frozenset(displaced))
    except (TypeError, ValueError) as error:
        raise DefinitionError(path, f"cannot be merged with this port's caffe.proto: {error}") from None


def _match_names(theirs: FileDescriptorProto) -> None:
    """Rename their layer messages as ours: ``layers`` holds V1LayerParameter, and its ``layer`` V0LayerParameter."""
    messages = {f".{PACKAGE}.{m.name}": m for m in theirs.message_type}
    renamed: dict[str, str] = {}

    def follow(message: Any, number: int, ours: str) -> Any:
        for field in message.field if message else ():
            if field.number == number and field.type_name in messages:
                renamed[field.type_name] = f".{PACKAGE}.{ours}"
                return messages[field.type_name]
        return None

    net = messages.get(f".{PACKAGE}.NetParameter")
    follow(net, 100, "LayerParameter")
    follow(follow(net, 2, "V1LayerParameter"), 1, "V0LayerParameter")
    for message in theirs.message_type:
        message.name = renamed.get(f".{PACKAGE}.{message.name}", message.name).rpartition(".")[2]
    for message in theirs.message_type:
        _rename_references(message, renamed)


def _rename_references(message: DescriptorProto, renamed: dict[str, str]) -> None:
    for field in message.field:
        for old, new in renamed.items():
            if field.type_name == old or field.type_name.startswith(f"{old}."):
                field.type_name = new + field.type_name[len(old) :]
                break
    for nested in message.nested_type:
        _rename_references(nested, renamed)


def _carry_v1_fields(merged: FileDescriptorProto, over: Schema) -> None:
    """Give V2 layers the fields that their V1 layers have, so that upgraded layers keep them."""
    messages = {m.name: m for m in merged.message_type}
    v1, v2 = messages["V1LayerParameter"], messages["LayerParameter"]
    known = {f.name for f in (*v2.field, *over.V1LayerParameter.DESCRIPTOR.fields)}
    for field in v1.field:
        if field.name not in known:
            v2.field.add().CopyFrom(field)
            v2.field[-1].number += _PRIVATE


def _merge_all(ours: Any, theirs: Any, merge: Callable[[Any, Any, set[str]], None], displaced: set[str]) -> None:
    """Merge each of theirs into ours of that name; add it where there is none."""
    known = {item.name: item for item in ours}
    for item in theirs:
        if item.name in known:
            merge(known[item.name], item, displaced)
        else:
            ours.add().CopyFrom(item)


def _merge_enum(ours: EnumDescriptorProto, theirs: EnumDescriptorProto, displaced: set[str]) -> None:
    _renumber(ours.name, ours.value, theirs.value, displaced)
    _merge_all(ours.value, theirs.value, lambda mine, value, _: mine.CopyFrom(value), displaced)
    if theirs.options.allow_alias:
        ours.options.allow_alias = True


def _merge_message(ours: DescriptorProto, theirs: DescriptorProto, displaced: set[str]) -> None:
    _renumber(ours.name, ours.field, theirs.field, displaced)
    _merge_all(ours.enum_type, theirs.enum_type, _merge_enum, displaced)
    _merge_all(ours.nested_type, theirs.nested_type, _merge_message, displaced)
    _merge_all(ours.field, theirs.field, _merge_field, displaced)


def _merge_field(ours: FieldDescriptorProto, theirs: FieldDescriptorProto, displaced: set[str]) -> None:
    if (ours.type, ours.type_name) != (theirs.type, theirs.type_name):
        ours.CopyFrom(theirs)
    ours.number = theirs.number


def _renumber(scope: str, ours: Any, theirs: Any, displaced: set[str]) -> None:
    """Records which of ours differ from theirs, and renumbers ours where theirs use the number for other names."""
    names = {item.name: item.number for item in theirs}
    taken, private = set(names.values()), {item.number for item in ours if item.number > _PRIVATE}
    for item in ours:
        if names.get(item.name, item.number) != item.number:
            displaced.add(f"{scope}.{item.name}")
        elif item.name not in names and item.number in taken:
            displaced.add(f"{scope}.{item.name}")
            item.number += _PRIVATE * (1 + sum(n % _PRIVATE == item.number for n in private))
