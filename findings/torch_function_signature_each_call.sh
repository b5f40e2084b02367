#!/usr/bin/env bash
# PyTorch 2.13.0: an autograd.Function with a setup_context, the form that the documentation recommends, has its signature
# inspected anew in every call of apply.
#
# Expected: what depends on the class alone is looked at once a class. inspect.signature costs tens of microseconds, as much
# as a small operation itself, and a net of many small layers pays it for each of them in every pass.
# Seen: one call of inspect.signature for each apply; none for a Function that takes ctx in forward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import inspect

import torch


class Apart(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


calls = 0
original = inspect.signature


def counting(*arguments, **named):
    global calls
    calls += 1
    return original(*arguments, **named)


inspect.signature = counting
x = torch.ones(3, requires_grad=True)
counts = {}
for function in (Apart, Together):
    calls = 0
    for _ in range(100):
        function.apply(x)
    counts[function.__name__] = calls
print("torch", torch.__version__)
print("inspect.signature in 100 calls of apply:", counts, "expected at most 1 each")
assert counts == {"Apart": 100, "Together": 0}, "apply no longer inspects in every call"
print("as described above")
PYTHON
