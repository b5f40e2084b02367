"""Export of nets: ONNX files, programs of torch.export and PyTorch files, checked when they are written."""

from caffe_port.export.onnx_file import onnx
from caffe_port.export.parts import Exported
from caffe_port.export.source_file import source
from caffe_port.export.torch_program import torch_program

__all__ = ["Exported", "onnx", "source", "torch_program"]
