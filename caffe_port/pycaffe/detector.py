"""Detector: a net that classifies windows of pictures, as R-CNN does.

Source: python/caffe/detector.py (both programs).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.pycaffe import io
from caffe_port.pycaffe.classifier import transformer_of
from caffe_port.pycaffe.net import Net
from caffe_port.schema.messages import TEST

__all__ = ["Detector"]


class Detector(Net):
    """A net whose first output is a vector of scores for each window.

    Args:
        model_file, pretrained_file: prototxt and weights.
        mean, input_scale, raw_scale, channel_swap: see :class:`caffe_port.pycaffe.io.Transformer`.
        context_pad: number of pixels on each side of the net's input that show the window's surroundings.
        gpu: run on the GPU, as in the fork's Detector.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
        *,
        gpu: bool = False,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        if gpu:
            self.set_mode_gpu()
        self.transformer = transformer_of(
            self, mean=mean, input_scale=input_scale, raw_scale=raw_scale, channel_swap=channel_swap
        )
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[str | Path, Sequence[Any]]]) -> list[dict[str, Any]]:
        """Classify windows.

        Args:
            images_windows: picture files, each with its windows (ymin, xmin, ymax, xmax).

        Returns:
            For each window ``{"window": ..., "prediction": scores, "filename": ...}``.
        """
        found = []
        crops = []
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in windows:
                found.append({"window": window, "filename": filename})
                crops.append(self.transformer.preprocess(self.inputs[0], self.crop(image, window)))
        if not crops:
            return []
        scores = self.forward_all(**{self.inputs[0]: np.array(crops)})[self.outputs[0]]
        return [{**one, "prediction": score} for one, score in zip(found, scores, strict=True)]

    def detect_selective_search(self, image_fnames: Iterable[str | Path]) -> list[dict[str, Any]]:
        """Classify the windows that selective search proposes.

        Raises:
            CaffeError: its Python package, which runs MATLAB, is not installed.
        """
        try:
            import selective_search_ijcv_with_python as proposals
        except ModuleNotFoundError:
            remedy = "install selective_search_ijcv_with_python, or pass windows to detect_windows"
            raise CaffeError("detect_selective_search", "no selective search", remedy=remedy) from None
        files = [str(Path(f).resolve()) for f in image_fnames]
        windows = proposals.get_windows(files, cmd="selective_search_rcnn")
        return self.detect_windows(zip(files, windows, strict=True))

    def crop(self, im: np.ndarray, window: Sequence[int]) -> np.ndarray:
        """A window of a picture, with the context around it if ``context_pad`` is set.

        Args:
            im: (height, width, channels). window: ymin, xmin, ymax, xmax.

        Raises:
            ShapeError: the window with its context is outside the picture.
        """
        box = np.array(window)
        if not self.context_pad:
            return im[box[0] : box[2], box[1] : box[3]]
        size = self.blobs[self.inputs[0]].width
        scale = size / (size - 2.0 * self.context_pad)
        half = (box[2:] - box[:2] + 1) / 2.0
        box = np.round(np.tile(box[:2] + half, 2) + scale * np.concatenate([-half, half]))
        scales = size / (box[2:] - box[:2] + 1)
        pad = [round(p) for p in np.maximum(0, -box[:2]) * scales]
        box = np.clip(box, 0, np.tile(im.shape[:2], 2))
        if (box[2:] <= box[:2]).any():
            raise ShapeError("crop", f"window {tuple(window)}", expected=f"inside a picture of {im.shape[:2]}")
        fit = [min(round(n), size - p) for n, p in zip((box[2:] - box[:2] + 1) * scales, pad, strict=True)]
        y, x, bottom, right = box.astype(int)
        crop = np.ones(self.crop_dims, np.float32) * self.crop_mean
        crop[pad[0] : pad[0] + fit[0], pad[1] : pad[1] + fit[1]] = io.resize_image(im[y:bottom, x:right], fit)
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context; pixels outside the picture get the mean, in the pictures' range before preprocessing."""
        first, t = self.inputs[0], self.transformer
        inverse = np.argsort(t.transpose[first])
        self.context_pad = context_pad
        self.crop_dims = np.array(self.blobs[first].shape[1:])[inverse]
        self.crop_mean = np.zeros(self.crop_dims, np.float32)
        if first in t.mean:
            mean = t.mean[first].transpose(inverse)
            if first in t.channel_swap:
                mean = mean[:, :, np.argsort(t.channel_swap[first])]
            self.crop_mean = mean / t.raw_scale.get(first, 1)
