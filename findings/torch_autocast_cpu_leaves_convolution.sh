#!/usr/bin/env bash
# PyTorch 2.13.0: torch.autocast("cpu") casts conv2d and conv_transpose2d to bfloat16, and not torch.convolution, the
# function both are made of; nor mv and addmv, where it casts matmul of the same matrix and vector.
#
# Expected: the same arithmetic, written another way, in the same precision. A module that calls torch.convolution, as one
# does for a convolution whose "transposed" is a variable, silently computes in float32 and gains nothing.
# Seen: bfloat16 for conv2d, conv_transpose2d and matmul; float32 for convolution, mv and addmv. No warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

x, w = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)
matrix, vector = torch.ones(4, 4), torch.ones(4)
settings = (1, 1), (0, 0), (1, 1)
with torch.autocast("cpu", torch.bfloat16):
    found = {
        "conv2d": F.conv2d(x, w),
        "convolution": torch.convolution(x, w, None, *settings, False, (0, 0), 1),
        "conv_transpose2d": F.conv_transpose2d(x, w),
        "convolution, transposed": torch.convolution(x, w, None, *settings, True, (0, 0), 1),
        "matmul": torch.matmul(matrix, vector),
        "mv": torch.mv(matrix, vector),
        "addmv": torch.addmv(vector, matrix, vector),
    }
print("torch", torch.__version__)
for name, y in found.items():
    print(f"{name:24} {y.dtype}")
cast = {name for name, y in found.items() if y.dtype == torch.bfloat16}
assert cast == {"conv2d", "conv_transpose2d", "matmul"}, f"cast now: {sorted(cast)}"
print("as described above")
PYTHON
