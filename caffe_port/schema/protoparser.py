"""A small parser of proto2 files: ``.proto`` text to a resolved ``FileDescriptorProto``.

It gives messages without protoc and without generated modules, from our ``caffe.proto`` and from that of a user's
fork. It reads descriptions of messages (messages, enums, fields with defaults and packing, oneofs) and skips the rest
(options, reserved and extension ranges, services, imports).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from caffe_port.errors import DefinitionError, nearest

__all__ = ["PACKAGE", "parse_proto"]

PACKAGE = "caffe"

_LABELS = {
    "optional": FieldDescriptorProto.LABEL_OPTIONAL,
    "required": FieldDescriptorProto.LABEL_REQUIRED,
    "repeated": FieldDescriptorProto.LABEL_REPEATED,
}
_INTEGERS = ("int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32", "sfixed64")
_FLOATS = ("float", "double")
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in (*_INTEGERS, *_FLOATS, "bool", "string", "bytes")
}
_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/
    | (?P<token> -?(?:\d|\.\d)(?:[eE][-+]|[\w.])* | -?[A-Za-z_.][\w.]*
      | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | [{}\[\]()<>=;,:] )
    | (?P<wrong> . )""",
    re.VERBOSE | re.DOTALL,
)
_DEEPEST = 64
_CLOSING = {"{": "}", "[": "]", "(": ")", "<": ">"}


def parse_proto(text: str, path: str, known: FileDescriptorProto | None = None) -> FileDescriptorProto:
    """The messages and enums of a ``.proto`` file, always in package ``caffe``.

    Args:
        text: the file's contents.
        path: its name for messages.
        known: further messages and enums that its fields may have as types.

    Raises:
        DefinitionError: a syntax error, or a type that neither the file nor ``known`` defines; with file:line:column.
    """
    parser = _Parser(text, path)
    parser.file(result := FileDescriptorProto(name=path, package=PACKAGE, syntax="proto2"))
    parser.resolve(result, known)
    return result


@dataclass
class _Parser:
    text: str
    path: str
    package: str = ""
    at: int = 0
    tokens: list[tuple[str, int]] = field(default_factory=list)
    references: list[tuple[FieldDescriptorProto, tuple[str, ...], int]] = field(default_factory=list)
    """Fields whose type is a name, with their scope and their place in the text."""

    def __post_init__(self) -> None:
        for match in _TOKEN.finditer(self.text):
            if match.lastgroup == "token":
                self.tokens.append((match[0], match.start()))
            elif match.lastgroup == "wrong":
                raise self.error(f"{match[0]!r}", at=match.start())
        self.tokens.append(("", len(self.text)))

    def error(self, found: str, *, expected: str = "", remedy: str = "", at: int | None = None) -> DefinitionError:
        at = self.tokens[self.at][1] if at is None else at
        line, column = self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
        return DefinitionError(f"{self.path}:{line}:{column}", found, expected=expected, remedy=remedy)

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def next(self) -> str:
        token = self.tokens[self.at][0]
        if not token:
            raise self.error("the end of the file", expected="more of a definition")
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        if self.tokens[self.at][0] != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.error(repr(self.peek()) if self.peek() else "the end of the file", expected=repr(token))

    def name(self) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.peek()):
            raise self.error(repr(self.peek()), expected="a name")
        return self.next()

    def number(self, smallest: int, largest: int) -> int:
        try:
            number = int(self.next(), 0)
        except ValueError:
            number = largest + 1
        if smallest <= number <= largest:
            return number
        self.at -= 1
        raise self.error(repr(self.peek()), expected=f"a number from {smallest} to {largest}")

    def skip_statement(self) -> None:
        """Skip to the statement's ``;`` or the end of its block."""
        while (token := self.next()) != ";":
            if token in _CLOSING:
                self.skip_block(token)
            if token == "{":
                self.accept(";")
                return

    def skip_block(self, opening: str) -> None:
        wanted = [_CLOSING[opening]]
        while wanted:
            token = self.next()
            if token == wanted[-1]:
                wanted.pop()
            elif token in _CLOSING:
                wanted.append(_CLOSING[token])

    def file(self, result: FileDescriptorProto) -> None:
        while self.peek():
            if self.accept("message"):
                self.message(result.message_type.add(), ())
            elif self.accept("enum"):
                self.enum(result.enum_type.add())
            elif self.accept("package"):
                self.package = self.next()
                self.expect(";")
            elif self.accept(";"):
                pass
            elif self.peek() in ("syntax", "edition", "import", "option", "extend", "service"):
                self.skip_statement()
            else:
                raise self.error(repr(self.peek()), expected="message or enum")

    def message(self, result: DescriptorProto, scope: tuple[str, ...]) -> None:
        result.name = self.name()
        scope = (*scope, result.name)
        if len(scope) > _DEEPEST:
            raise self.error(f"a message in {_DEEPEST} others", expected="fewer")
        self.expect("{")
        while not self.accept("}"):
            if self.accept("message"):
                self.message(result.nested_type.add(), scope)
            elif self.accept("enum"):
                self.enum(result.enum_type.add())
            elif self.accept("oneof"):
                self.name()
                self.expect("{")
                while not self.accept("}"):
                    self.field(result.field.add(), scope)
            elif self.accept(";"):
                pass
            elif self.peek() in ("option", "extensions", "reserved", "extend"):
                self.skip_statement()
            else:
                self.field(result.field.add(), scope)

    def enum(self, result: EnumDescriptorProto) -> None:
        result.name = self.name()
        self.expect("{")
        while not self.accept("}"):
            if self.accept(";"):
                pass
            elif self.accept("option"):
                if self.accept("allow_alias"):
                    result.options.allow_alias = True
                self.skip_statement()
            elif self.peek() == "reserved":
                self.skip_statement()
            else:
                value = result.value.add(name=self.name())
                self.expect("=")
                value.number = self.number(-(2**31), 2**31 - 1)
                if self.accept("["):
                    self.skip_block("[")
                self.expect(";")

    def field(self, result: FieldDescriptorProto, scope: tuple[str, ...]) -> None:
        result.label = _LABELS[self.next()] if self.peek() in _LABELS else FieldDescriptorProto.LABEL_OPTIONAL
        at = self.tokens[self.at][1]
        kind = self.next()
        if kind in ("group", "map"):
            raise self.error(f"a {kind} field", expected="a message, an enum or a scalar", at=at)
        if kind in _SCALARS:
            result.type = _SCALARS[kind]
        else:
            self.references.append((result, scope, at))
            result.type_name = kind
        result.name = self.name()
        self.expect("=")
        result.number = self.number(1, 2**29 - 1)
        if self.accept("["):
            self.options(result, kind)
        self.expect(";")

    def options(self, result: FieldDescriptorProto, kind: str) -> None:
        while not self.accept("]"):
            if self.accept("("):
                self.skip_block("(")
                option = ""
            else:
                option = self.next()
            self.expect("=")
            if self.accept("{"):
                self.skip_block("{")
            elif option == "default":
                result.default_value = self.default(kind)
            elif option == "packed":
                result.options.packed = self.next() == "true"
            else:
                self.next()
            self.accept(",")

    def default(self, kind: str) -> str:
        """A default in the descriptors' form."""
        token = self.next()
        try:
            if kind in _INTEGERS:
                return str(int(token, 0))
            if kind in _FLOATS:
                return repr(float(token)).removesuffix(".0")
            if kind in ("string", "bytes"):
                while self.peek()[:1] in ("'", '"'):
                    token += self.next()
                return str(ast.literal_eval(token))
        except (ValueError, SyntaxError):
            self.at -= 1
            raise self.error(repr(token), expected=f"a default of type {kind}") from None
        return token

    def resolve(self, result: FileDescriptorProto, known: FileDescriptorProto | None) -> None:
        """Give each field that names a type its kind and full name, searched from its scope outwards."""
        kinds: dict[str, int] = {}

        def collect(messages: Iterable[DescriptorProto], enums: Iterable[EnumDescriptorProto], scope: str) -> None:
            kinds.update((scope + enum.name, FieldDescriptorProto.TYPE_ENUM) for enum in enums)
            for message in messages:
                kinds[scope + message.name] = FieldDescriptorProto.TYPE_MESSAGE
                collect(message.nested_type, message.enum_type, f"{scope}{message.name}.")

        if known is not None:
            collect(known.message_type, known.enum_type, "")
        collect(result.message_type, result.enum_type, "")
        for reference, scope, at in self.references:
            name = reference.type_name.removeprefix(".").removeprefix(f"{self.package}.")
            outwards = [f"{'.'.join(scope[:depth])}.{name}".lstrip(".") for depth in range(len(scope), -1, -1)]
            full = next((candidate for candidate in outwards if candidate in kinds), None)
            if full is None:
                near = nearest(name, kinds)
                raise self.error(
                    f"{name!r}, which the file does not define",
                    expected=f"the type of {reference.name}",
                    remedy=f"did you mean {near}?" if near else "put its definition into the same file",
                    at=at,
                )
            reference.type, reference.type_name = kinds[full], f".{PACKAGE}.{full}"
