"""Reading a layer's message with a check that every set field is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Fields"]


class Fields:
    """A protobuf message that records which fields are read.

    ``fields.num_output`` gives the value (the schema's default when unset), a nested message as :class:`Fields`, a
    repeated field as a list. ``has(name)`` returns whether an optional field is set, and counts as reading it.
    :meth:`unread` lists every set field that no code has read, which would be a silent difference from Caffe.
    """

    def __init__(self, message: Any, path: str = "") -> None:
        self._message, self._path = message, path
        self._read: set[str] = set()
        self._nested: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._message, name)
        self._read.add(name)
        field = self._message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is None:
            return list(value) if hasattr(value, "append") else value
        if name not in self._nested:
            path = f"{self._path}.{name}" if self._path else name
            if hasattr(value, "append"):
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
        number = getattr(self, name)
        return self._message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number[number].name

    def value(self, name: str) -> Any:
        """The value of field ``name``; of an enum the value's name."""
        return self.enum(name) if self._message.DESCRIPTOR.fields_by_name[name].enum_type else getattr(self, name)

    def skip(self, *names: str) -> None:
        """Mark fields as read that have no effect here, such as ``engine``."""
        self._read.update(names)

    def blank(self, **fields: Any) -> Any:
        """Another message of the same type."""
        return type(self._message)(**fields)

    @property
    def message(self) -> Any:
        """The message itself; everything in it counts as read."""
        self._read.update(f.name for f in self._message.DESCRIPTOR.fields)
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
