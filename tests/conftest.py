"""The folder of real Caffe's numbers."""

from __future__ import annotations

import os

os.environ.setdefault("GLOG_minloglevel", "1")  # accounts of loaded weights are tested, not printed
