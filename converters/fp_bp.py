#!/usr/bin/env python3
"""Classification weights for the forward-backward net: python converters/fp_bp.py classification.caffemodel"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.tools.fp_bp import main

if __name__ == "__main__":
    main()
