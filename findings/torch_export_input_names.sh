#!/usr/bin/env bash
# PyTorch 2.13.0: torch.export exports, saves and loads a program with an input called "a-b", which then cannot be run.
#
# Expected: keyword inputs of forward(**inputs) may have any name, as in the module itself; or export refuses the name.
# Seen: export, save and load pass, and module() raises SyntaxError from code that torch generates, where the name stands
# as it is. Names of blobs in other frameworks' files (cls-score, a/b) are such names.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import io

import torch


class Keywords(torch.nn.Module):
    def forward(self, **inputs):
        return sum(inputs.values())


def ran(name):
    inputs = {name: torch.ones(2), "x": torch.ones(2)}
    assert Keywords()(**inputs).tolist() == [2, 2]
    file = io.BytesIO()
    torch.export.save(torch.export.export(Keywords(), (), inputs), file)
    file.seek(0)
    program = torch.export.load(file)
    try:
        return str(program.module()(**inputs).tolist())
    except SyntaxError as error:
        return f"SyntaxError: {error.msg}"


print("torch", torch.__version__)
found = {name: ran(name) for name in ("ab", "a-b")}
for name, said in found.items():
    print(f"{name:4} {said}")
assert found["ab"] == "[2.0, 2.0]"
assert found["a-b"].startswith("SyntaxError")
print("as described above")
PYTHON
