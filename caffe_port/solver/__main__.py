"""``python -m caffe_port.solver``."""

from caffe_port.tools.train import main

main()
