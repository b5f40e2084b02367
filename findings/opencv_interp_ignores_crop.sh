#!/usr/bin/env bash
# OpenCV 4.14.0's Caffe importer reads DeepLab's layer Interp and ignores pad_beg, pad_end and shrink_factor: no error, no
# warning, other numbers or another shape.
#
# Expected (cdmh/deeplab-public-ver2, src/caffe/layers/interp_layer.cpp, LayerSetUp and Reshape): -pad_beg rows and columns
# are cut off at the start and -pad_end at the end before resizing; shrink_factor makes (n - 1) / shrink_factor + 1 of n and
# zoom_factor then n + (n - 1) (zoom_factor - 1). So 6x6 cut by one on each side and resized to 4x4 is the middle 4x4 as it
# is, and both factors 2 make 5x5 of 5x5.
# Seen: the whole 6x6 resized to 4x4, and 9x9 of 5x5. shrink_factor alone is an error, as one would expect.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 opencv-python-headless==4.14.0.94
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

NET = """name: "net" input: "x" input_shape { dim: 1 dim: 1 dim: %d dim: %d }
layer { name: "y" type: "Interp" bottom: "x" top: "y" interp_param { %s } }"""


def run(x, block):
    size = x.shape[2]
    net = cv2.dnn.readNetFromCaffe(np.frombuffer((NET % (size, size, block)).encode(), np.uint8))
    net.setInput(x, "x")
    return net.forward("y")


picture = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
middle = picture[:, :, 1:5, 1:5]
plain = run(picture, "height: 4 width: 4")
cut = run(picture, "height: 4 width: 4 pad_beg: -1 pad_end: -1")
small = run(picture[:, :, :5, :5], "shrink_factor: 2 zoom_factor: 2")
print("OpenCV", cv2.__version__)
print("largest difference from the middle:", float(np.abs(cut - middle).max()), "expected 0")
print("equal to no pad_beg and pad_end at all:", bool(np.array_equal(cut, plain)), "expected False")
print("both factors 2, of 5x5:", small.shape[2:], "expected (5, 5)")
assert np.array_equal(cut, plain) and np.abs(cut - middle).max() > 0.1, "pad_beg and pad_end are no longer ignored"
assert small.shape[2:] == (9, 9), "shrink_factor is no longer ignored"
print("as described above")
PYTHON
