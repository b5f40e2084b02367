#!/usr/bin/env python3
"""Writes the published networks and their solvers; the same as ``caffe-port build``: python prototxt/build.py --list"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.tools.build import main

if __name__ == "__main__":
    main()
