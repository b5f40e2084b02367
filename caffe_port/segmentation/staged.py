"""An earlier name of :mod:`caffe_port.segmentation.two_stage`."""

from caffe_port.segmentation.two_stage import TwoStage as Staged

__all__ = ["Staged"]
