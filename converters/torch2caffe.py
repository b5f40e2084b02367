#!/usr/bin/env python3
"""A file of PyTorch to Caffe's weights: python converters/torch2caffe.py w.safetensors --prototxt net.prototxt"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.tools.torch2caffe import main

if __name__ == "__main__":
    main()
