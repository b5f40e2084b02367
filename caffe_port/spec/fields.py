"""Reading a layer's message with a check that every set field is read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

__all__ = ["Fields"]


class Fields:
    """A protobuf message that records which fields are read.

    ``fields.num_output`` gives the value (the schema's default when unset), a nested message as :class:`Fields`, a
    repeated field as a list. ``has(name)`` returns whether an optional field is set, and counts as reading it.
    :meth:`unread` lists every set field that no code has read, which would be a silent difference from Caffe.
    """

    def __init__(self, message: Any, path: str = "") -> None:
        self._message, self._path, self._kinds = message, path, _kinds(message.DESCRIPTOR)
        self._read: set[str] = set()
        self._nested: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name[0] == "_":
            raise AttributeError(name)
        value = getattr(self._message, name)
        self._read.add(name)
        is_message, many, _ = self._kinds[name]
        if not is_message:
            return list(value) if many else value
        if name not in self._nested:
            path = f"{self._path}.{name}" if self._path else name
            if many:
                self._nested[name] = [Fields(v, f"{path}[{i}]") for i, v in enumerate(value)]
            else:
                self._nested[name] = Fields(value, path)
        return self._nested[name]

    def has(self, name: str) -> bool:
        """Whether the optional field ``name`` is set."""
        self._read.add(name)
        return self._message.HasField(name)

    def enum(self, name: str) -> str:
        """The name of the enum value in field ``name``: ``"MAX"``."""
        names = self._kinds[name][2] or {}
        return names[getattr(self, name)]

    def value(self, name: str) -> Any:
        """The value of field ``name``; of an enum the value's name."""
        return self.enum(name) if self._kinds[name][2] else getattr(self, name)

    def skip(self, *names: str) -> None:
        """Mark fields as read that have no effect here, such as ``engine``."""
        self._read.update(names)

    def blank(self, **fields: Any) -> Any:
        """Another message of the same type."""
        return type(self._message)(**fields)

    @property
    def message(self) -> Any:
        """The message itself; everything in it counts as read."""
        self._read.update(self._kinds)
        self._nested.clear()
        return self._message

    def unread(self) -> Iterator[str]:
        """The paths of all set fields that were not read."""
        for field, _ in self._message.ListFields():
            path = f"{self._path}.{field.name}" if self._path else field.name
            if field.name not in self._read:
                yield path
            elif field.name in self._nested:
                nested = self._nested[field.name]
                for item in nested if isinstance(nested, list) else [nested]:
                    yield from item.unread()


@cache
def _kinds(message: Any) -> dict[str, tuple[bool, bool, dict[int, str] | None]]:
    """By the name of a descriptor's fields whether it is a message, whether it is repeated, and an enum's names."""
    kinds = {}
    for field in message.fields:
        enum = field.enum_type and {number: value.name for number, value in field.enum_type.values_by_number.items()}
        kinds[field.name] = field.message_type is not None, isinstance(field.default_value, list), enum
    return kinds
