"""What the data layers read: lists, pictures, databases and boxes, and the batches made of them. Needs no torch.

A *source* (:class:`~caffe_port.data.batches.Batches`) makes one batch after another, as arrays; a data layer hands them
out. Every random number comes from a stream that the layer seeds, in the order in which real Caffe draws.
"""

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.files import Places
from caffe_port.data.prefetch import Prefetcher
from caffe_port.data.transform import Transformer

__all__ = ["Array", "Batches", "Places", "Prefetcher", "State", "Transformer"]
