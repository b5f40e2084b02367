#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: LRN of float32 loses digits that the same arithmetic in float32 keeps.
#
# Expected: about 1e-7 of the largest value, as numpy gives in float32 when it adds each window's squares afresh.
# Seen: for AlexNet's setting (size 5, alpha 1e-4, beta 0.75, bias 1), where one channel is larger than the others, the
# channels after it that it does not reach are off: by 6e-5 of the largest value if it is 100 times as large, by 8e-3 if
# 1000 times, by 0.2 if 10000 times; a sum that is carried from window to window keeps the rounding of the large squares
# that left it. No warning, no setting.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

SIZE, ALPHA, BETA, BIAS = 5, 1e-4, 0.75, 1.0


def lrn(x, dtype):
    """The definition of the ONNX operator, every window summed by itself."""
    squares = np.pad(x.astype(dtype) ** 2, ((0, 0), (SIZE // 2, SIZE // 2), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(SIZE))
    return x.astype(dtype) / (dtype(BIAS) + dtype(ALPHA / SIZE) * total) ** dtype(BETA)


node = helper.make_node("LRN", ["x"], ["y"], size=SIZE, alpha=ALPHA, beta=BETA, bias=BIAS)
shape = [1, 16, 32, 32]
graph = helper.make_graph(
    [node],
    "lrn",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
model.ir_version = 8
onnx.checker.check_model(model)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("onnxruntime", onnxruntime.__version__)
draw = np.random.RandomState(0)
worst = {}
for large in (1, 100, 1000, 10000):
    x = draw.standard_normal(shape).astype(np.float32) * 30
    x[:, 3] *= large
    exact = lrn(x, np.float64)
    away = np.r_[0:1, 6:16]  # channels whose window does not hold channel 3
    for name, y in (("onnxruntime", session.run(None, {"x": x})[0]), ("numpy float32", lrn(x, np.float32))):
        worst[name, large] = float(np.abs(y - exact)[:, away].max() / np.abs(exact[:, away]).max())
        print(f"channel 3 times {large:6}: {name:14} off by {worst[name, large]:.1e} of the largest value")
assert worst["numpy float32", 10000] < 1e-6
assert worst["onnxruntime", 10000] > 1e-5
print("as described above")
PYTHON
