#!/usr/bin/env bash
# PyTorch 2.13.0: torch.export.export cannot make a size dynamic where forward takes its inputs as **inputs.
#
# Expected: dynamic_shapes={"inputs": {"x": {0: batch}}}, the form that the message about wrong keys asks for (top-level
# keys are the names of forward's arguments), is accepted; the same net with forward(self, x) is.
# Seen: AssertionError "Must provide a tree_name when there might be a mismatch", an internal check without a word about
# the argument. With {"x": ...} instead it is the message about wrong keys. Without dynamic_shapes it exports.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch


class Named(torch.nn.Module):
    def forward(self, x):
        return x * 2


class Keywords(torch.nn.Module):
    def forward(self, **inputs):
        return inputs["x"] * 2


def outcome(net, shapes):
    try:
        torch.export.export(net, (), {"x": torch.ones(4, 3)}, dynamic_shapes=shapes)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "exported"


batch = {0: torch.export.Dim("batch", min=1, max=64)}
found = {
    "forward(self, x)": outcome(Named(), {"x": batch}),
    "forward(self, **inputs), static": outcome(Keywords(), None),
    "forward(self, **inputs), by argument": outcome(Keywords(), {"inputs": {"x": batch}}),
    "forward(self, **inputs), flat": outcome(Keywords(), {"x": batch}),
}
print("torch", torch.__version__)
for name, said in found.items():
    print(f"{name:38} {said[:120]}")
named, static, nested, flat = found.values()
assert named == static == "exported"
assert nested.startswith("AssertionError: Must provide a tree_name")
assert "top-level keys must be the arg names ['inputs']" in flat
print("as described above")
PYTHON
