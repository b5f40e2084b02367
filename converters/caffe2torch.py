#!/usr/bin/env python3
"""Caffe's weights to a file of PyTorch: python converters/caffe2torch.py model.caffemodel"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.tools.caffe2torch import main

if __name__ == "__main__":
    main()
