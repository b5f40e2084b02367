"""An earlier name of :mod:`caffe_port.segmentation.ensembles`."""

from caffe_port.segmentation.ensembles import Product, Refined, Scoring, System

__all__ = ["Product", "Refined", "Scoring", "System"]
