"""Hostile files in protobuf's wire format: .caffemodel, .solverstate, mean images. See :mod:`fuzzing`."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import numpy as np
from fuzzing import Reader, integer, pick, register, word
from weight_reading import read_state, read_weights

from caffe_port.formats.meanfile import read_mean

Field = list
"""[number, wire type, value]; the value is an int, bytes, or a list of fields."""


def varint(value: int) -> bytes:
    value &= 2**70 - 1 if value > 0 else 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def encode(fields: list[Field], rng: Random | None = None) -> bytes:
    """The message; with ``rng``, some lengths are wrong."""
    out = []
    for number, wire, value in fields:
        out.append(varint(number << 3 | wire))
        if wire == 0:
            out.append(varint(value if isinstance(value, int) else 3))
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            out.append((value if isinstance(value, int) else 7).to_bytes(16, "little", signed=True)[:size])
        else:
            raw = encode(value, rng) if isinstance(value, list) else value
            raw = varint(raw) if isinstance(raw, int) else raw
            lie = rng is not None and rng.random() < 0.01
            out.append(varint(integer(rng, len(raw)) if lie and rng else len(raw)) + raw)
    return b"".join(out)


def floats(count: int, wide: bool = False) -> bytes:
    return struct.pack(f"<{count}{'d' if wide else 'f'}", *range(count))


def blob(rng: Random, shape: tuple[int, ...]) -> list[Field]:
    """A good BlobProto in any of its forms."""
    count = int(np.prod(shape))

    def dims() -> list[Field]:
        return [[7, 2, [[1, 2, b"".join(map(varint, shape))]]]]

    def legacy() -> list[Field]:
        return [[i + 1, 0, n] for i, n in enumerate(((1,) * 4 + shape)[-4:])]

    def unpacked() -> list[Field]:
        return [[5, 5, i] for i in range(count)]

    numbers = pick(
        rng,
        lambda: [[5, 2, floats(count)]],
        lambda: [[8, 2, floats(count, True)]],
        unpacked,
        lambda: [[10, 0, 2], [12, 2, bytes(2 * count)]],
        lambda: [[5, 2, floats(count)], [6, 2, floats(count)]],
    )
    return [*rng.choice((dims, legacy))(), *numbers]


def layers(rng: Random) -> list[Field]:
    """A good NetParameter of any generation."""

    def layer(name: str, type: str, number: int, shapes: tuple) -> Field:
        if generation == 2:
            return [
                100,
                2,
                [[1, 2, name.encode()], [2, 2, type.encode()], *([7, 2, blob(rng, s)] for s in shapes), [10, 0, 1]],
            ]
        if generation == 1:
            return [2, 2, [[4, 2, name.encode()], [5, 0, number], *([6, 2, blob(rng, s)] for s in shapes)]]
        return [
            2,
            2,
            [[1, 2, [[1, 2, name.encode()], [2, 2, b"innerproduct"], *([50, 2, blob(rng, s)] for s in shapes)]]],
        ]

    generation = rng.randrange(3)
    return [
        [1, 2, b"net"],
        layer("ip", "InnerProduct", 14, ((3, 4), (3,))),
        layer("bn", "BatchNorm", 0, ((3,), (3,), (1,))),
        layer("relu", "ReLU", 18, ()),
    ]


def all_fields(fields: list[Field]) -> list[tuple[list[Field], int]]:
    """Every field at any depth, as its list and its place there."""
    found = [(fields, i) for i in range(len(fields))]
    for field in fields:
        if isinstance(field[2], list):
            found += all_fields(field[2])
    return found


def times(rng: Random, field: Field, *numbers: int) -> int:
    """One of ``numbers``, but not so many that the field repeated so often takes over 50 kB."""
    return min(rng.choice(numbers), 50_000 // (len(encode([field])) + 1) + 1)


def alter(rng: Random, fields: list[Field]) -> None:
    """Change one field somewhere."""
    places = all_fields(fields)
    if not places:
        return
    where, i = rng.choice(places)
    field = where[i]
    way = rng.randrange(9)
    if way == 0:
        where.insert(rng.randrange(len(where) + 1), [*field])
    elif way == 1:
        del where[i]
    elif way == 2:
        field[0] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 50, 100, 101, 2**28, 0))
    elif way == 3:
        field[1] = rng.randrange(6)
        if field[1] == 2 and isinstance(field[2], int):
            field[2] = varint(field[2])
    elif way == 4:
        where[i] = [
            field[0],
            2,
            [[7, 2, [[1, 2, b"".join(varint(integer(rng)) for _ in range(rng.choice((1, 65, 900))))]]]],
        ]
    elif way == 5 and isinstance(field[2], int):
        field[2] = integer(rng, field[2])
    elif way == 5 and isinstance(field[2], bytes):
        field[2] = pick(rng, lambda: word(rng).encode(), lambda: field[2][:-1], lambda: field[2] * 3, lambda: b"")
    elif way == 6:
        where += [[*field] for _ in range(times(rng, field, 2, 2, 2, 2, 2, 2, 70, 70, 3000))]
    elif way == 7:
        where[:] = [
            f
            for k, f in enumerate(where)
            for f in ([f, [6, 5, 1]] * (times(rng, field, 2, 2, 2, 2, 300) if k == i else 1))
        ]
    else:
        inner = encode([field])
        for _ in range(times(rng, field, 1, 1, 1, 1, 50, 50, 2000)):
            inner = encode([[field[0], 2, inner]])
        field[1], field[2] = 2, inner


def wire_case(rng: Random, folder: Path, name: str, fields: list[Field]) -> Path:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if len(encode(fields)) < 50_000:
            alter(rng, fields)
    path = folder / name
    path.write_bytes(encode(fields, rng))
    return path


def caffemodel(rng: Random, folder: Path) -> Path:
    return wire_case(rng, folder, "w.caffemodel", layers(rng))


def solverstate(rng: Random, folder: Path) -> Path:
    history = [[3, 2, blob(rng, (3, 4))], [3, 2, blob(rng, (3,))]]
    return wire_case(rng, folder, "w.solverstate", [[1, 0, 9], [2, 2, b"w.caffemodel"], *history, [4, 0, 1]])


def mean(rng: Random, folder: Path) -> Path:
    return wire_case(rng, folder, "mean.binaryproto", blob(rng, (1, 3, 4, 4)))


WIRE = ("formats/wire.py", "formats/blob.py", "formats/sniff.py")
register(
    Reader("caffemodel", read_weights, caffemodel, ("formats/caffemodel.py", *WIRE)),
    Reader("solverstate", read_state, solverstate, ("formats/solverstate.py", *WIRE)),
    Reader("mean", lambda path: read_mean(path).sum(), mean, ("formats/meanfile.py", *WIRE)),
)
