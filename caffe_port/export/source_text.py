"""The text of an exported PyTorch file: docstring, imports, helpers, the class, load(), and what it does when run."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import caffe_port
from caffe_port.export import source_detection, source_helpers
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.source_code import Code, Var, number, spaced, unique, wrapped

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Program", "text_of"]

_MODULES: tuple[ModuleType, ...] = (source_helpers, source_detection)


@dataclass
class Program:
    """What a file says.

    Attributes:
        stem: the file's name without .py. code: the modules and the weights. inputs, outputs: its blobs.
        arguments, body, returned: the names of the inputs, the lines of the forward pass, and its result.
        folded: layers in another's weights. preprocessing: of pictures.
    """

    net: Net
    stem: str
    code: Code
    inputs: Sequence[Var]
    outputs: Sequence[Var]
    arguments: Sequence[str]
    body: Sequence[str]
    returned: str
    folded: dict[str, str]
    preprocessing: Preprocessing | None


def text_of(program: Program) -> str:
    """The file."""
    helpers = _helpers(program.code.helpers)
    name = _class_name(program)
    parts = [
        *helpers,
        _class(program, name),
        _load(program, name),
        *([_picture(program)] if _takes_pictures(program) else []),
        _main(program),
    ]
    body = "\n\n\n".join(parts)
    return f"{_docstring(program, name)}\n\n{_imports(program, body)}\n\n{_constants(program)}\n\n\n{body}\n"


# -- the head ----------------------------------------------------------------------------------------------------------


def _docstring(program: Program, name: str) -> str:
    net = program.net
    title = _plain(net.definition.net.name) or name
    made = _plain(Path(net.definition.path).name) if net.definition.path else ""
    lines = [
        f'"""{title} in PyTorch{f", from {made}" if made and made != "<text>" else ""}.',
        "",
        *(f"Input {_plain(var.blob)}: float32 of shape {_batched(var.shape)}." for var in program.inputs),
        *(f"Output {_plain(var.blob)}: {_batched(var.shape)}." for var in program.outputs),
    ]
    if _takes_pictures(program):
        lines += ["", "Pictures: channels in the order blue, green, red, from 0 to 255 minus a mean: see picture()."]
    if program.folded:
        lines += ["", *_filled(f"In the weights of the layers before them: {', '.join(map(_plain, program.folded))}.")]
    version, dialect = caffe_port.__version__, net.dialect.title
    lines += ["", *_filled(f"Written by caffe_port {version} from a net of {dialect}. It needs torch and safetensors.")]
    return "\n".join([*lines, '"""'])


def _plain(text: str) -> str:
    """Text that cannot end a docstring or a line."""
    return re.sub(r"[^\x20-\x7e]|\"\"\"|\\", "_", text).strip().rstrip('"')[:200]


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, 120)


def _batched(shape: Sequence[int]) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})" if shape else "()"


def _imports(program: Program, body: str) -> str:
    used = set(re.findall(r"\b(math|torch|nn|F|sys|Tensor)\b(?=[.\]):, ])", _without_text(body)))
    lines = ["from __future__ import annotations", ""]
    lines += [f"import {name}" for name in ("math", "sys") if name in used and (name != "sys" or "sys.argv" in body)]
    lines += ["from pathlib import Path"] if program.code.arrays else []
    lines += [""] if lines[-1] else []
    lines += ["import torch"]
    lines += ["from safetensors.torch import load_file"] if program.code.arrays else []
    lines += ["from torch import Tensor, nn"]
    lines += ["from torch.nn import functional as F"] if re.search(r"\bF\.", body) else []
    return "\n".join(lines)


def _without_text(code: str) -> str:
    """The code without its strings."""
    return re.sub(r'""".*?"""|"[^"\n]*"', '""', code, flags=re.DOTALL)


def _constants(program: Program) -> str:
    inputs = ", ".join(f"{_text(var.blob)}: {_tuple(var.shape)}" for var in program.inputs)
    outputs = "".join(f"{_text(var.blob)}, " for var in program.outputs)
    outputs = outputs if len(program.outputs) == 1 else outputs[:-2]
    lines = [f"INPUTS = {{{inputs}}}", f"OUTPUTS = ({outputs.rstrip(' ') if len(program.outputs) == 1 else outputs})"]
    if _takes_pictures(program):
        p, channels = program.preprocessing or Preprocessing(), program.inputs[0].shape[1]
        mean = list(p.mean) or [0.0]
        mean = mean * channels if len(mean) == 1 else mean
        lines.append(f"MEAN = {_tuple([number(m) for m in mean])}  # {_ORDER[channels]}; what the net was trained with")
        lines.append(f"SCALE = {number(p.scale)}")
    if program.code.arrays:
        lines.append(f"WEIGHTS = Path(__file__).with_name({_text(f'{program.stem}.safetensors')})")
    return "\n".join(row for line in lines for row in (wrapped(line, 0) if "  #" not in line else [line]))


_ORDER = {1: "grey", 3: "blue, green, red"}


def _text(value: str) -> str:
    found = repr(value)
    return f'"{found[1:-1]}"' if found[0] == "'" and '"' not in found else found


def _tuple(values: Iterable[Any]) -> str:
    parts = list(map(str, values))
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


# -- helpers -----------------------------------------------------------------------------------------------------------


@cache
def _sources() -> dict[str, str]:
    """The text of every function and class of the helpers' modules, in their order."""
    found: dict[str, str] = {}
    for module in _MODULES:
        text = inspect.getsource(module)
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = ast.get_source_segment(text, node) or ""
    return found


def _helpers(names: Iterable[str]) -> list[str]:
    """The texts of these helpers and of those that they use."""
    sources, needed, open_ = _sources(), set[str](), list(names)
    while open_:
        name = open_.pop()
        if name not in needed:
            needed.add(name)
            open_ += [other for other in sources if re.search(rf"\b{other}\b", _without_text(sources[name]))]
    return [text for name, text in sources.items() if name in needed]


# -- the class ---------------------------------------------------------------------------------------------------------


def _class_name(program: Program) -> str:
    """The net's name in capital words."""
    words = re.findall(r"[A-Za-z0-9]+", program.net.definition.net.name or program.stem)
    name = "".join(word[0].upper() + word[1:] for word in words) or "Net"
    name = name if name[0].isalpha() else f"Net{name}"
    return unique(name, lambda n: n in {*_sources(), "F", "Tensor", "Path", "None", "True", "False", *_CONSTANTS})


_CONSTANTS = ("INPUTS", "OUTPUTS", "MEAN", "SCALE", "WEIGHTS")


def _class(program: Program, name: str) -> str:
    count = len(program.outputs)
    several = ", ".join(["Tensor"] * count) if count <= 3 else "Tensor, ..."
    gives = "Tensor" if count == 1 else f"tuple[{several}]"
    given = ", ".join(["self", *(f"{argument}: Tensor" for argument in program.arguments)])
    lines = [f"class {name}(nn.Module):"]
    if program.code.modules:
        lines += ["    def __init__(self) -> None:", "        super().__init__()"]
        for line in spaced(program.code.modules):
            lines += wrapped(line, 8) if line else [""]
        lines.append("")
    lines += wrapped(f"def forward({given}) -> {gives}:", 4)
    for line in program.body:
        lines += wrapped(line, 8) if line else [""]
    lines += wrapped(f"return {program.returned}", 8)
    return "\n".join(lines)


def _load(program: Program, name: str) -> str:
    if not program.code.arrays:
        return f'def load() -> {name}:\n    """The net, ready for use."""\n    return {name}().eval()'
    return f'''\
def load(path: str | Path = WEIGHTS) -> {name}:
    """The net with its weights, ready for use (in eval mode)."""
    net = {name}()
    net.load_state_dict(load_file(path))
    return net.eval()'''


# -- the file as a program ---------------------------------------------------------------------------------------------


def _takes_pictures(program: Program) -> bool:
    if len(program.inputs) != 1:
        return False
    shape = program.inputs[0].shape
    return len(shape) == 4 and shape[1] in _ORDER


def _picture(program: Program) -> str:
    _, channels, *size = program.inputs[0].shape
    height, width = (program.preprocessing and program.preprocessing.size) or size
    mode, turned = ("L", "[None]") if channels == 1 else ("RGB", ".permute(2, 0, 1).flip(0)")
    return f'''\
def picture(path: str) -> Tensor:
    """A picture as the net takes it: (1, {channels}, {height}, {width}), {_ORDER[channels]}."""
    import numpy as np
    from PIL import Image

    image = Image.open(path).convert("{mode}").resize(({width}, {height}), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(image)){turned}.float()
    return (x - torch.tensor(MEAN).view(-1, 1, 1))[None] * SCALE'''


def _main(program: Program) -> str:
    pictures = _takes_pictures(program)
    many = len(program.outputs) > 1
    drawn = "[torch.rand(shape) for shape in INPUTS.values()]"
    inputs = f"[picture(sys.argv[1])] if len(sys.argv) > 1 else {drawn}" if pictures else drawn
    lines = [
        'if __name__ == "__main__":',
        "    net = load()",
        f"    inputs = {inputs}",
        "    with torch.no_grad():",
        f"        outputs = {'net(*inputs)' if many else '[net(*inputs)]'}",
        "    for name, top in zip(OUTPUTS, outputs, strict=True):",
        '        print(f"{name}: {tuple(top.shape)}, from {top.min():g} to {top.max():g}")',
    ]
    return "\n".join(lines)
