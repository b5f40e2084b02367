"""Caffe's messages, built from our ``caffe.proto`` when imported: any protobuf from 4.21 on, no generated modules.

    from caffe_port.schema.messages import NetParameter, TRAIN

Every message of ``caffe.proto`` is an attribute of this module and of :data:`SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from caffe_port.schema.protoparser import PACKAGE, parse_proto

__all__ = ["SCHEMA", "TEST", "TRAIN", "Schema"]


class Schema:
    """The message classes of one description, as attributes: ``schema.NetParameter``.

    Args:
        file: the description, resolved, in package ``caffe``.
        displaced: names of ours that a user's description overruled (``Message.field`` or ``Enum.VALUE``).
    """

    def __init__(self, file: descriptor_pb2.FileDescriptorProto, displaced: frozenset[str] = frozenset()) -> None:
        self.file, self.displaced = file, displaced
        self._pool = descriptor_pool.DescriptorPool()
        self._pool.AddSerializedFile(file.SerializeToString())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            descriptor = self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        except KeyError:
            raise AttributeError(f"caffe.proto has no message {name!r}") from None
        if hasattr(message_factory, "GetMessageClass"):
            cls = message_factory.GetMessageClass(descriptor)
        else:  # protobuf 4.21
            cls = message_factory.MessageFactory(self._pool).GetPrototype(descriptor)
        setattr(self, name, cls)
        return cls

    def __iter__(self) -> Iterator[str]:
        """The names of the messages."""
        return (message.name for message in self.file.message_type)


_PROTO = Path(__file__).with_name("caffe.proto")
SCHEMA = Schema(parse_proto(_PROTO.read_text(encoding="utf-8"), _PROTO.name))
"""BVLC's messages with the fork's and NVCaffe's additions."""

TRAIN, TEST = 0, 1


def __getattr__(name: str) -> Any:
    return getattr(SCHEMA, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *SCHEMA})
