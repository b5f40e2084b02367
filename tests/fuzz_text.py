"""Hostile definitions: prototxts of nets and solvers, and .proto files. See :mod:`fuzzing`."""

from __future__ import annotations

import json
import re
from functools import cache
from math import prod
from pathlib import Path
from random import Random

import torch
from fuzzing import Reader, integer, register, word

from caffe_port.net import Net
from caffe_port.schema import load_proto, merge, read_net, read_solver

ROOT = Path(__file__).resolve().parents[1]
TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[A-Za-z_][\w.]*|-?\d[\w.+-]*|\S|\s+')
NUMBERS = ("0", "-1", "1e400", "-1e400", "nan", "inf", "-inf", "1e-400", "0x7fffffff", "017", "1.5", "1f", "1" * 400)
SNIPPETS = (
    *("{", "}", "<", ">", "[", "]", ":", ",", ";", "#", "'", '"', "layer {", "layers {", "}" * 50, "{" * 3000),
    *("param { lr_mult: ", "type: CONVOLUTION", 'type: "Split"', "input: 'x'", "input_dim: ", "[a.b.c/d.E] { }", "\\"),
    *('name: "a" name: "b"', "include { phase: TEST }", "/*", "//", "message", "enum", "oneof", "repeated", "group"),
)
SOLVER = """net: "net.prototxt" test_iter: 3 test_interval: 5 base_lr: 0.01 momentum: 0.9 lr_policy: "multistep"
stepvalue: 5 stepvalue: 9 gamma: 0.1 display: 2 max_iter: 20 snapshot: 5 snapshot_prefix: "s" solver_mode: CPU
train_state { level: 1 stage: "a" } test_state { } random_seed: 3 type: "Adam" delta: 1e-8 iter_size: 2
"""


@cache
def nets() -> tuple[str, ...]:
    paths = sorted([*ROOT.glob("prototxt/**/*.prototxt"), *ROOT.glob("docs/examples/*.prototxt")])
    texts = [path.read_text() for path in paths]
    shortest = sorted((text for text in texts if "layer" in text), key=len)[:6]
    dims = 'input: "x" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9'
    v1 = 'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" blobs_lr: 1 weight_decay: 2 convolution_param {'
    v0 = 'layers { layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 pad: 1 } bottom: "x" top: "c" }'
    return (*shortest, f'name: "n" {dims} {v1} num_output: 2 kernel_size: 3 }} }}', f"{dims} {v0}")


@cache
def protos() -> tuple[str, ...]:
    whole = (ROOT / "caffe_port" / "schema" / "caffe.proto").read_text()
    messages = re.findall(r"^message \w+ \{.*?^\}", whole, re.MULTILINE | re.DOTALL)
    small = sorted(messages, key=len)[:40]
    return tuple('syntax = "proto2"; package caffe;\n' + "\n".join(small[i : i + 5]) for i in range(0, 40, 5))


def mutate(rng: Random, text: str) -> str:
    """The text with some of its tokens changed."""
    tokens = TOKEN.findall(text)
    numbers = [i for i, token in enumerate(tokens) if token[0].isdigit() or token[0] == "-"]
    strings = [i for i, token in enumerate(tokens) if token[0] == '"']
    words = [i for i, token in enumerate(tokens) if token[0].isalpha()]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        way = rng.randrange(8)
        if way <= 1 and numbers:
            tokens[rng.choice(numbers)] = rng.choice((str(integer(rng)), str(integer(rng)), rng.choice(NUMBERS)))
        elif way == 2 and strings:
            quoted = word(rng).encode("unicode_escape").decode().replace('"', '\\"')
            tokens[rng.choice(strings)] = f'"{quoted}"'
        elif way == 3 and words:
            tokens[rng.choice(words)] = rng.choice((tokens[rng.choice(words)], word(rng)))
        elif way == 4:
            tokens.insert(rng.randrange(len(tokens) + 1), f" {rng.choice(SNIPPETS)} ")
        elif way == 5:
            start = rng.randrange(len(tokens))
            del tokens[start : start + rng.choice((1, 1, 3, 20))]
            return "".join(tokens)
        elif way == 6:
            start = rng.randrange(len(tokens))
            tokens[start:start] = tokens[start : start + rng.choice((1, 5, 40))] * rng.choice((1, 1, 1, 30))
            return "".join(tokens)
        else:
            i, j = rng.randrange(len(tokens)), rng.randrange(len(tokens))
            tokens[i], tokens[j] = tokens[j], tokens[i]
    return "".join(tokens)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def prototxt(rng: Random, folder: Path) -> Path:
    return write(folder, "net.prototxt", mutate(rng, rng.choice(nets())))


def solver(rng: Random, folder: Path) -> Path:
    return write(folder, "solver.prototxt", mutate(rng, SOLVER))


def proto(rng: Random, folder: Path) -> Path:
    text = mutate(rng, rng.choice(protos()))
    if rng.random() < 0.05:
        depth = rng.choice((10, 100, 5000))
        text += "message A { " * depth + "optional int32 a = 1; " + "}" * depth
    return write(folder, "their.proto", text)


def read_definition(path: Path) -> None:
    for phase in ("TRAIN", "TEST"):
        read_net(path, phase=phase)


def read_proto(path: Path) -> None:
    try:
        load_proto(path).NetParameter(name="n")
    finally:
        merge._merged.cache_clear()  # a process reads a few such files, not thousands


SIZES = ("0", "-1", "1", "2", "3", "5", "7", "64", "2147483647", "2147483648", "4294967295", "9223372036854775807")


@cache
def layers() -> tuple[tuple[str, str, str], ...]:
    """Definitions around one layer each, with phase and dialect, and short enough to be built often."""
    found: list[tuple[str, str, str]] = []
    for dialect, suite in (("bvlc", "bvlc_layers"), ("noh", "noh_layers"), ("bvlc", "bvlc_corners")):
        entries = json.loads((ROOT / "tests" / "reference" / suite / "manifest.json").read_text()).values()
        texts = [entry for entry in entries if isinstance(entry, dict) and len(entry.get("prototxt", "")) > 60]
        found += [(entry["prototxt"], entry.get("phase", "TEST"), dialect) for entry in texts]
    return tuple(found)


def net(rng: Random, folder: Path) -> Path:
    """A layer whose numbers are tiny, or so large that no machine holds them."""
    text, phase, dialect = rng.choice(layers())
    tokens = TOKEN.findall(text)
    numbers = [i for i, token in enumerate(tokens) if token[0].isdigit() or token[0] == "-"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if numbers:
            tokens[rng.choice(numbers)] = rng.choice((*SIZES, *SIZES, "nan", "1e30", "-1e30", "0.5", "inf"))
    return write(folder, f"{phase}.{dialect}.prototxt", "".join(tokens))


def build(path: Path) -> None:
    phase, dialect, _ = path.name.split(".")
    built = Net(path, phase=phase, dialect=dialect)
    if sum(prod(shape) for shape in built.shapes.values()) < 10**6:
        with torch.no_grad():
            built(**{name: torch.zeros(built.shapes[name]) for name in built.graph.inputs})


register(
    Reader("net", build, net, ("net.py", "spec/base.py", "layers/base.py"), damage=False),
    Reader(
        "prototxt",
        read_definition,
        prototxt,
        ("schema/text.py", "schema/definition.py", "schema/upgrade.py", "schema/upgrade_v0.py", "schema/splits.py"),
    ),
    Reader("solver_prototxt", read_solver, solver, ("schema/text.py", "schema/definition.py")),
    Reader("proto", read_proto, proto, ("schema/protoparser.py", "schema/merge.py")),
)
