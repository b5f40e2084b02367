"""The contents of protoc's module of that name: message classes, enums and their values, from our schema."""

from __future__ import annotations

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from caffe_port.schema.messages import SCHEMA

DESCRIPTOR = SCHEMA.NetParameter.DESCRIPTOR.file


def __getattr__(name: str) -> Any:
    return getattr(SCHEMA, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *SCHEMA})


for _enum in DESCRIPTOR.enum_types_by_name.values():
    globals()[_enum.name] = EnumTypeWrapper(_enum)
    globals().update((value.name, value.number) for value in _enum.values)
