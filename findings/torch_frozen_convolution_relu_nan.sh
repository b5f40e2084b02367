#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: a convolution and its ReLU make 0 of NaN once they are one operation of oneDNN.
#
# Expected: relu(NaN) is NaN, as in eager mode and in torch.compile as it comes; freezing changes speed, not results.
# Seen: with torch._inductor.config.freezing (TORCHINDUCTOR_FREEZING=1), and after torch.jit.optimize_for_inference, the
# same net gives 0 wherever the convolution gave NaN. A net whose weights or inputs are broken looks like one that found
# nothing. A linear layer with a ReLU keeps NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch._inductor.config

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
x = torch.randn(1, 3, 8, 8)
x[0, 0, 4, 4] = torch.nan  # in 3 x 3 windows of 8 channels


def nans(run):
    with torch.no_grad():
        for _ in range(3):
            y = run(x)
    return int(y.isnan().sum())


print("torch", torch.__version__)
found = {"eager": nans(net), "torch.compile": nans(torch.compile(net))}
torch._dynamo.reset()
torch._inductor.config.freezing = True
found["torch.compile, frozen"] = nans(torch.compile(net))
traced = torch.jit.freeze(torch.jit.trace(net, torch.randn(1, 3, 8, 8)))
found["optimize_for_inference"] = nans(torch.jit.optimize_for_inference(traced))
for name, count in found.items():
    print(f"{name:24} {count} of 72 NaN")
assert list(found.values()) == [72, 72, 0, 0], found
PYTHON
