"""Caffe's messages, built from our ``caffe.proto`` on import: protobuf 4.21 or later, no generated modules.

    from caffe_port.schema.messages import NetParameter, TRAIN

Every message of ``caffe.proto`` is an attribute of this module and of :data:`SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from caffe_port.schema.protoparser import PACKAGE, parse_proto

__all__ = ["SCHEMA", "TEST", "TRAIN", "Schema", "message_class"]


class Schema:
    """The message classes of one description, as attributes: ``schema.NetParameter``.

    Args:
        file: the description, resolved, in package ``caffe``.
        displaced: names of ours that a user's description replaced (``Message.field`` or ``Enum.VALUE``).
    """

    def __init__(self, file: FileDescriptorProto, displaced: frozenset[str] = frozenset()) -> None:
        self.file, self.displaced = file, displaced
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(file.SerializeToString())
        # All at once: protobuf 4.22 to 4.24 crash when a class of a nested message is garbage-collected.
        for message in file.message_type:
            setattr(self, message.name, message_class(pool, message.name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"caffe.proto has no message {name!r}")

    def __iter__(self) -> Iterator[str]:
        """The names of the messages."""
        return (message.name for message in self.file.message_type)


def message_class(pool: descriptor_pool.DescriptorPool, name: str) -> Any:
    """The class of a message of package caffe."""
    descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)  # protobuf 4.21


_PROTO = Path(__file__).with_name("caffe.proto")
SCHEMA = Schema(parse_proto(_PROTO.read_text(encoding="utf-8"), _PROTO.name))
"""BVLC's messages with the fork's and NVCaffe's additions."""

TRAIN, TEST = 0, 1
PHASES = {TRAIN: "TRAIN", TEST: "TEST"}
"""A phase's name by its number."""


def __getattr__(name: str) -> Any:
    return getattr(SCHEMA, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *SCHEMA})
