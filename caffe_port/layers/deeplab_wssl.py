"""DeepLab's layers for learning from image-level labels: the labels in an image, and scores biased towards them.

Registered for all dialects. Source: unique_label_layer.cpp, bias_channel_layer.cpp,
adaptive_bias_channel_layer.cpp (deeplab-public), and section 3.2 of Papandreou, Chen, Murphy and Yuille, "Weakly- and
Semi-Supervised Learning of a DCNN for Semantic Image Segmentation", ICCV 2015.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.random import default_stream
from caffe_port.spec import losses

Array = Any  # np.ndarray, whose generic form differs between the supported numpy versions

NOTHING = -1
"""Padding of an image's list of labels."""


@layer("UniqueLabel")
class UniqueLabel(losses.UniqueLabel, Layer):
    """The labels of each image's pixels in rising order, always with ``force_label``; padded with -1."""

    untraceable = "it reads the numbers of its bottoms one by one"

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_full((x.shape[0], self.most, 1, 1), NOTHING)
        for shown, out in zip(x, y, strict=True):
            labels = sorted({*shown.unique().tolist()} - {*self.ignored} | {*self.forced})
            if len(labels) > self.most:
                raise self.error(f"an image with {len(labels)} labels", expected=f"at most max_labels, {self.most}")
            out[: len(labels), 0, 0] = x.new_tensor(labels)
        return y


class _Biased(Layer):
    """Scores (num, channels, height, width), and (num, labels, 1, 1) of the channels present in each image."""

    untraceable = "it reads the numbers of its bottoms one by one"

    def channels(self, label: Tensor, count: int, ignored: frozenset[int] = frozenset()) -> list[list[int]]:
        """The channels present in each image, in the given order."""
        rows = [[n for n in row if n not in ignored | {NOTHING}] for row in label.flatten(1).long().tolist()]
        for n in (n for row in rows for n in row):
            if not 0 <= n < count:
                raise self.error(f"label {n}", expected=f"0 to {count - 1}, or {NOTHING} for none")
        return rows


@layer("BiasChannel")
class BiasChannel(losses.BiasChannel, _Biased):
    """Adds ``bg_bias`` to channel 0 and ``fg_bias`` to any other that is present in the image (EM-Fixed)."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        bias = torch.zeros(x.shape[:2], dtype=x.dtype)
        for out, row in zip(bias, self.channels(label, x.shape[1], frozenset(self.ignored)), strict=True):
            for channel in row:
                out[channel] += self.foreground if channel else self.background
        return x + bias.to(x.device)[:, :, None, None]


@layer("AdaptiveBiasChannel")
class AdaptiveBiasChannel(losses.AdaptiveBiasChannel, _Biased):
    """Biases the channels present in an image until each wins a portion of the pixels (EM-Adapt); no gradient.

    ``num_iter`` times, background first and then the others in a random order, a channel is raised until it reaches
    the best of those present in ``bg_portion`` or ``fg_portion`` of the pixels. Later iterations may reverse changes of
    earlier ones. With ``suppress_others`` no absent channel wins anywhere: it is first set ``margin_others`` below the
    smallest of those present. All channels are then shifted so that the mean over the pixels of the best score is
    unchanged. An image without labels keeps its scores.

    The order comes from the net's stream, so that ``random_seed`` determines it; the original uses C's rand().
    """

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        scores = x.detach().flatten(2).cpu().numpy().copy()
        for score, shown in zip(scores, self.channels(label, x.shape[1]), strict=True):
            if shown:
                self.adapt(score, sorted(shown))
        return torch.from_numpy(scores).to(x).view(x.shape)

    def adapt(self, score: Array, shown: list[int]) -> None:
        """Biases (channels, pixels) in place; ``shown`` is in rising order."""
        if self.suppress:
            least = score[shown].min(0)
            for channel in {*range(len(score))} - {*shown}:
                np.copyto(score[channel], least - score.dtype.type(self.margin), where=score[channel] > least)
        best = score[shown].max(0)
        before = best.mean(dtype=np.float64)
        background = shown[0] == 0
        first, others = shown[:background], shown[background:]
        for _ in range(self.rounds):
            default_stream().shuffle(others)
            for channel in first + others:
                score[channel] += self.lacking(best - score[channel], self.portions[channel > 0])
                np.maximum(best, score[channel], out=best)
        score += score.dtype.type(before - best.mean(dtype=np.float64))

    def lacking(self, behind: Array, portion: float) -> Any:
        """The increase after which a channel is no longer ``behind`` in a portion of the pixels."""
        place = min(int(np.float32(portion) * np.float32(behind.size)), behind.size - 1)
        return np.partition(behind, place)[place]
