"""The frames of a video file or of a numbered sequence of pictures, as SSD's VideoData makes batches of them.

Source: video_data_layer.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.ssd_pictures import channels
from caffe_port.data.ssd_transform import SSDTransformer
from caffe_port.errors import CaffeError, FormatError

__all__ = ["VideoFrames"]


class VideoFrames(Batches):
    """Frames (items, channels, height, width), and a label 0 for each, (items,); they end with the video.

    The original transforms each frame twice into the same place and so takes every random number twice.

    Args:
        path: of the file, or of a sequence as OpenCV names it: ``frames/%02d.png``.
    """

    transformer: SSDTransformer

    def __init__(self, path: str, transformer: SSDTransformer, batch: int) -> None:
        self._path, self.transformer, self._batch = path, transformer, batch
        first = self._open()
        shape = transformer.made((channels(first), *first.shape[:2]), path)
        self.shapes = [(batch, *shape), (batch,)]

    def _open(self) -> Array:
        """Go to the first frame, and return it."""
        import cv2

        self._video: Any = cv2.VideoCapture(self._path)
        if not self._video.isOpened():
            raise FormatError(
                self._path, "a video that OpenCV cannot open", expected="a video, or pictures DIR/%02d.png"
            )
        self._count, self._at = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        read, frame = self._video.read()
        if not read:
            raise FormatError(self._path, "a video without a first frame", expected="one that OpenCV can read")
        self._video.set(cv2.CAP_PROP_POS_FRAMES, 0)
        return frame

    def make(self) -> tuple[Array, ...]:
        data = np.empty(self.shapes[0], np.float32)
        for out in data:
            read, frame = self._video.read() if self._at < self._count else (False, None)
            if not read:
                raise CaffeError(
                    self._path,
                    f"the end of the video after {self._at} frames",
                    expected="a frame: the original stops here too",
                    remedy=f"{self._at // self._batch} passes reach its end",
                )
            self._at += 1
            for _ in range(2):
                self.transformer.picture(frame, out, f"{self._path}: frame {self._at - 1}")
        return data, np.zeros(self._batch, np.float32)

    def position(self) -> State:
        return {"at": np.array([self._at, self._count])}

    def move(self, state: State) -> None:
        at, count = state["at"].tolist()
        self._open()
        if count != self._count or not 0 <= at <= count:
            raise CaffeError(
                "the data's position", f"frame {at} of {count}", expected=f"one of {self._path}'s {self._count}"
            )
        for _ in range(at):  # going to a frame by its number is not exact in every format
            self._video.grab()
        self._at = at
