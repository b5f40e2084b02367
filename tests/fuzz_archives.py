"""Hostile state_dicts: .safetensors, .npz, .pth. See :mod:`fuzzing`."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import Reader, integer, pick, register, word
from weight_reading import read_weights


def anything(rng: Random, depth: int = 0) -> Any:
    """A value of any of JSON's types."""
    if depth == 0 and rng.random() < 0.02:
        deep: Any = "end"
        for _ in range(rng.choice((3, 2000, 100_000))):
            deep = [deep]
        return deep
    return rng.choice(
        (None, True, 1.5, -0.5, integer(rng), word(rng), [], {}, [integer(rng)], ["F32"], {"a": 1}, float("inf"))
    )


def json_text(value: Any) -> str:
    """JSON of any depth."""
    head, tail = "", ""
    while isinstance(value, list) and len(value) == 1:
        head, tail, value = head + "[", "]" + tail, value[0]
    if isinstance(value, list):
        return f"{head}[{','.join(map(json_text, value))}]{tail}"
    if isinstance(value, dict):
        return f"{head}{{{','.join(f'{json.dumps(k)}:{json_text(v)}' for k, v in value.items())}}}{tail}"
    return head + json.dumps(value) + tail


def safetensors(rng: Random, folder: Path) -> Path:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, shape in (("ip.weight", [3, 4]), ("ip.bias", [3]), ("bn.mean", [3])):
        size = 4 * int(np.prod(shape))
        entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice(list(entries))
        entry = entries[key]
        way = rng.randrange(7)
        if way == 0:
            entries[key] = anything(rng)
        elif way == 1:
            entries[word(rng, key)] = entry
        elif way == 2 and isinstance(entry, dict) and entry:
            del entry[rng.choice(list(entry))]
        elif isinstance(entry, dict):
            part = rng.choice(("dtype", "shape", "data_offsets", "more"))
            value = entry.get(part)
            if isinstance(value, list) and rng.random() < 0.7:
                value = list(value)
                if value:
                    value[rng.randrange(len(value))] = pick(rng, lambda: integer(rng), lambda: anything(rng, 1))
                value += [integer(rng)] * rng.choice((0, 0, 1, 65))
                value = value[: rng.choice((1, 2, 3, 100))]
            else:
                value = rng.choice(("F64", "F16", "BF16", "BOOL", "I64", "C64", "F8_E4M3", anything(rng)))
            entry[part] = value
    text = json_text(entries)
    if rng.random() < 0.1:
        text = text[:-1] + ',"ip.weight":' + json_text(entries.get("ip.weight")) + "}"
    raw = text.encode("utf-8", "surrogatepass")
    size = integer(rng, len(raw)) & (2**64 - 1) if rng.random() < 0.05 else len(raw)
    path = folder / "w.safetensors"
    path.write_bytes(struct.pack("<Q", size) + raw + bytes(at + rng.choice((0, 0, 0, -1, 5))))
    return path


# -- zip archives ------------------------------------------------------------------------------------------------------


def zip_up(rng: Random, path: Path, members: list[tuple[str, bytes]]) -> None:
    """The archive, with members dropped, doubled, renamed, emptied or compressed otherwise, and wrong headers."""
    if rng.random() < 0.6:
        i = rng.randrange(len(members))
        name, content = members[i]
        members[i : i + 1] = pick(
            rng,
            list,
            lambda: [(name, content)] * 2,
            lambda: [(word(rng), content)],
            lambda: [(name, b"")],
            lambda: [(name, content[: rng.randrange(len(content) + 1)])],
            lambda: [(name, content), (word(rng), b"more")],
        )
    buffer = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", kind) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name.replace("\0", "_")), content, kind)
    data = bytearray(buffer.getvalue())
    while rng.random() < 0.4:
        signature, places = rng.choice(
            (
                (b"PK\x01\x02", (8, 10, 16, 20, 24, 28, 30, 42)),
                (b"PK\x03\x04", (6, 8, 14, 18, 22, 26)),
                (b"PK\x05\x06", (8, 10, 12, 16, 20)),
            )
        )
        spots = [i for i in range(len(data) - 4) if data[i : i + 4] == signature]
        if spots:
            at = rng.choice(spots) + rng.choice(places)
            data[at : at + 2] = (rng.choice((0, 1, 8, 9, 12, 14, 99, 0xFFFF, 0x7FFF))).to_bytes(2, "little")
    path.write_bytes(data)


def npy(rng: Random) -> bytes:
    """A .npy with anything in its header."""
    shape = rng.choice(
        (
            "(3, 4)",
            "(12,)",
            "()",
            "(10**12,)",
            f"({integer(rng)},)",
            "(-1,)",
            "(3.5,)",
            "'a'",
            "[3]",
            "(True,)",
            "(0, 99999999999)",
        )
    )
    descr = rng.choice(
        ("'<f4'",) * 4
        + (
            "'<f8'",
            "'|O'",
            "'<c8'",
            "'<U9'",
            "'S3'",
            "[('a', '<f4')]",
            "'zz'",
            "3",
            "'<i8'",
            "'>f4'",
            "'<f16'",
            "'<M8[s]'",
            "'|V5'",
            "'<0f4'",
            "'(3,)f4'",
        )
    )
    order = rng.choice(("False", "False", "True", "3", "None"))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = pick(
        rng,
        lambda: text,
        lambda: text,
        lambda: text,
        lambda: word(rng),
        lambda: text[:-9],
        lambda: "(" * 5000,
        lambda: "{'descr': " + "[" * 300,
    )
    raw = text.encode("utf-8", "replace")
    version = rng.choice((1, 1, 1, 2, 3, 9))
    size = struct.pack(
        "<H" if version == 1 else "<I", integer(rng, len(raw)) & 0xFFFF if rng.random() < 0.1 else len(raw) & 0xFFFF
    )
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + bytes(rng.choice((48, 48, 48, 0, 47, 96)))


def good_npy(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(shape, np.float32))
    return out.getvalue()


def npz(rng: Random, folder: Path) -> Path:
    members = [("ip.weight.npy", good_npy((3, 4))), ("ip.bias.npy", good_npy((3,))), ("bn.mean.npy", good_npy((3,)))]
    if rng.random() < 0.6:
        i = rng.randrange(3)
        members[i] = (members[i][0], npy(rng))
    path = folder / "w.npz"
    zip_up(rng, path, members)
    return path


@cache
def saved() -> tuple[dict[str, bytes], ...]:
    """Archives that torch.save makes of good and of unusual things, as their members."""
    import torch

    ones = torch.ones(3, 4)
    good = {"ip.weight": ones, "ip.bias": torch.ones(3)}
    things: list[Any] = [
        *(good, good, good, ones, [ones], {"ip": good}, {3: ones}, {"ip.weight": 3}, {"ip.weight": None}),
        {"ip.weight": ones.t(), "ip.bias": ones[:, 0]},
        {"ip.weight": torch.ones(1).expand(3, 4)},
        {"ip.weight": torch.nn.Parameter(ones)},
        {"ip.weight": ones.bfloat16(), "ip.bias": ones.half(), "bn.mean": ones.double(), "bn.x": ones.long()},
        {"ip.weight": ones.to(torch.complex64)},
        {"ip.weight": ones.to_sparse(), "ip.bias": ones.to_sparse_csr()},
        {"ip.weight": ones.to(torch.float8_e4m3fn)},
        {"ip.weight": torch.ones(3, 4, device="meta")},
        {"ip.weight": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)},
        {"ip.weight": ones.to(torch.complex64).conj(), "ip.bias": torch._neg_view(ones)},
        {"ip.weight": torch.zeros(0, 5), "ip.bias": torch.tensor(1.0), "bn.mean": ones > 0},
        {"weight": ones, "ip.": ones, ".x": ones},
    ]
    out = []
    for thing in things:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        with zipfile.ZipFile(buffer) as archive:
            out.append({name: archive.read(name) for name in archive.namelist()})
    return tuple(out)


def repickle(rng: Random, data: bytes) -> bytes:
    """The pickle with some of its operations' arguments changed, or operations left out, doubled or swapped."""
    ops = [(op, arg, at) for op, arg, at in pickletools.genops(data)]
    ends = [at for _, _, at in ops[1:]] + [len(data)]
    parts = [data[at:end] for (_, _, at), end in zip(ops, ends, strict=True)]
    numbers = [i for i, (op, _, _) in enumerate(ops) if op.name.startswith("BININT")]
    texts = [i for i, (op, _, _) in enumerate(ops) if op.name in ("BINUNICODE", "SHORT_BINUNICODE", "GLOBAL")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.randrange(6)
        if way <= 2 and numbers:
            i = rng.choice(numbers)
            value = integer(rng, ops[i][1])
            parts[i] = pickle.dumps(value, 2)[2:-1] if abs(value) < 2**600 else parts[i]
        elif way == 3 and texts:
            i = rng.choice(texts)
            text = word(rng).encode("utf-8", "surrogatepass")
            parts[i] = b"X" + struct.pack("<I", len(text)) + text
        elif way == 4:
            i = rng.randrange(len(parts))
            parts[i] = rng.choice((b"", parts[i] * 2, rng.choice(parts), b"N", b"}", b"]", b")", b"\x88", b"K\x05"))
        elif texts:
            i = rng.choice(texts)
            names = (
                b"torch._utils _rebuild_tensor_v2",
                b"torch FloatStorage",
                b"torch DoubleStorage",
                b"torch CharStorage",
                b"torch Size",
                b"collections OrderedDict",
                b"os system",
                b"torch._utils _rebuild_parameter",
                b"torch device",
                b"builtins bytearray",
            )
            module, name = rng.choice(names).split()
            parts[i] = b"c" + module + b"\n" + name + b"\n"
    return b"".join(parts)


def pth(rng: Random, folder: Path) -> Path:
    members = dict(rng.choice(saved()))
    pickled = next(name for name in members if name.endswith("data.pkl"))
    if rng.random() < 0.75:
        members[pickled] = repickle(rng, members[pickled])
    path = folder / "w.pth"
    zip_up(rng, path, list(members.items()))
    return path


ZIP = ("formats/archive.py", "formats/zipped.py")
register(
    Reader("safetensors", read_weights, safetensors, ("formats/safetensors.py",)),
    Reader("npz", read_weights, npz, ZIP),
    Reader("pth", read_weights, pth, (*ZIP, "formats/pth.py")),
)
