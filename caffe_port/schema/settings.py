"""``name=value`` on the command line, in place of a prototxt's fields."""

from __future__ import annotations

from typing import Any

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema.text import parse_text

__all__ = ["change"]


def change(message: Any, setting: str) -> None:
    """Set one field, of the message or of one inside it, in place.

    Args:
        setting: ``base_lr=0.001``; ``stepvalue=100,200`` replaces all values of a repeated field;
            ``train_state.level=1`` inside another message. A message itself is set as text: ``train_state=level: 1``.

    Raises:
        DefinitionError: no such field, or a value of another type.
    """
    where = f"--set {setting}"
    name, equals, value = setting.partition("=")
    if not equals:
        raise DefinitionError(where, "no =", expected="NAME=VALUE, such as base_lr=0.001")
    *outer, last = name.strip().split(".")
    target = message
    for part in outer:
        if _field(target, part, where).message_type is None or _repeated(target, part):
            raise DefinitionError(where, f"{part} has no fields", expected="a message that occurs once")
        target = getattr(target, part)
    field = _field(target, last, where)
    repeated = _repeated(target, last)
    try:
        fresh = parse_text(_text(field, value.strip(), repeated), type(target), where)
    except DefinitionError as error:
        raise DefinitionError(where, error.found, expected=error.expected, remedy=error.remedy) from None
    if repeated or field.message_type is not None:
        target.ClearField(last)
    target.MergeFrom(fresh)


def _field(message: Any, name: str, where: str) -> Any:
    fields = message.DESCRIPTOR.fields_by_name
    if name not in fields:
        near = nearest(name, fields)
        found = f"unknown field {name!r} of {message.DESCRIPTOR.name}" + (f" (near: {near})" if near else "")
        raise DefinitionError(where, found)
    return fields[name]


def _repeated(message: Any, name: str) -> bool:
    return hasattr(getattr(message, name), "append")


def _text(field: Any, value: str, repeated: bool) -> str:
    """The field as prototxt."""
    if field.message_type is not None:
        return f"{field.name} {{ {value} }}"
    values = [v.strip() for v in value.split(",") if v.strip()] if repeated else [value]
    if field.type == field.TYPE_STRING:
        values = ['"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values]
    return f"{field.name}: [{', '.join(values)}]" if repeated else f"{field.name}: {values[0]}"
