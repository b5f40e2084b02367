"""Classifier: a net that classifies pictures. Source: python/caffe/classifier.py (both programs)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.pycaffe import io
from caffe_port.pycaffe.net import Net
from caffe_port.schema.messages import TEST

__all__ = ["Classifier", "transformer_of"]


def transformer_of(net: Net, **settings: Any) -> io.Transformer:
    """A transformer for the net's first input, from (height, width, channels) pictures, with the settings given."""
    first = net.inputs[0]
    transformer = io.Transformer({first: net.blobs[first].shape})
    transformer.set_transpose(first, (2, 0, 1))
    for name, value in settings.items():
        if value is not None:
            getattr(transformer, f"set_{name}")(first, value)
    return transformer


class Classifier(Net):
    """A net whose first output is a vector of scores for each picture.

    Args:
        model_file, pretrained_file: prototxt and weights.
        image_dims: (height, width) to resize pictures to before cropping; by default the input's.
        mean, input_scale, raw_scale, channel_swap: see :class:`caffe_port.pycaffe.io.Transformer`.
        gpu: run on the GPU, as in the fork's Classifier.
        options: as of :class:`caffe_port.pycaffe.Net` (``dialect``, ``proto``).
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        *,
        gpu: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file, **options)
        if gpu:
            self.set_mode_gpu()
        self.transformer = transformer_of(
            self, mean=mean, input_scale=input_scale, raw_scale=raw_scale, channel_swap=channel_swap
        )
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None or not len(image_dims) else np.array(image_dims)

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """Classify pictures.

        Args:
            inputs: (height, width, channels) each.
            oversample: average over ten crops (corners, centre, mirrored); otherwise use the centre.

        Returns:
            (pictures, classes) scores.
        """
        pictures = np.array([io.resize_image(picture, self.image_dims) for picture in inputs])
        if oversample:
            crops = io.oversample(pictures, self.crop_dims)
        else:
            top, left, bottom, right = (
                int(n) for n in (*(self.image_dims - self.crop_dims) / 2.0, *(self.image_dims + self.crop_dims) / 2.0)
            )
            crops = pictures[:, top:bottom, left:right]
        first = self.inputs[0]
        prepared = np.array([self.transformer.preprocess(first, crop) for crop in crops])
        scores = self.forward_all(**{first: prepared})[self.outputs[0]]
        return scores.reshape(len(inputs), 10, -1).mean(1) if oversample else scores
