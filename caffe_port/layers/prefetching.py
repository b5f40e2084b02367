"""Shared by the data layers with a thread: transformations, seeds, prefetching of one batch.

Source: base_data_layer.cpp, internal_thread.cpp (both programs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import Batches, Places, Prefetcher, State, Transformer
from caffe_port.data.batches import Cursor
from caffe_port.data.pictures import Reader
from caffe_port.data.position import pack, unpack
from caffe_port.data.shard import ALL, Share, share
from caffe_port.errors import CaffeError
from caffe_port.formats.meanfile import read_mean
from caffe_port.layers.base import Layer, Shape
from caffe_port.layers.capabilities import Positioned
from caffe_port.random import Stream, default_stream
from caffe_port.spec import sources

__all__ = ["Prefetching", "Reading"]


class Reading(sources.Source, Layer, Positioned):
    """A layer that reads files and has no bottoms."""

    untraceable = "it reads data"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.places = Places(self.where.rpartition(":")[0])
        self.register_buffer("like", torch.empty(0), persistent=False)
        """A buffer with the net's precision and device, for the tops."""

    def find(self, name: str, what: str, *, folder: bool = False) -> str:
        """The path of a file, or ``folder``, that the definition names."""
        return self.places.find(name, what, f"{self.where}: layer {self.name}", folder=folder)

    def batch_size(self) -> int:
        """The parameter block's ``batch_size``."""
        size: int = self.p.batch_size
        if size < 1:
            raise self.error(f"batch_size {size}", expected="1 or more")
        return size

    def share(self) -> Share:
        """This process's shard of the data, if the layer reads only that."""
        return share() if self.training else ALL

    def state(self) -> dict[str, str]:
        """The position of the next batch that ``forward`` gives, as JSON-compatible data, for :meth:`restore`."""
        return pack(self.get_position())

    def restore(self, state: dict[str, str]) -> None:
        """Continue from a :meth:`state`; the caller restores the net's stream of random numbers.

        Raises:
            LayerError: the data or the layer's parameters have changed since.
        """
        try:
            self.set_position(unpack(state))
        except KeyError as error:
            raise self.error(f"a position without {error}", expected="a state of this layer's") from error
        except (CaffeError, TypeError, ValueError, OverflowError) as error:
            raise self.error(f"a position that does not fit: {error}") from error

    def get_position(self) -> State:
        """The position of the next batch: arrays by name."""
        raise NotImplementedError

    def set_position(self, state: State) -> None:
        """Continue from a position."""
        raise NotImplementedError

    def tensors(self, arrays: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Arrays as the tops."""
        return tuple(torch.from_numpy(a).to(self.like) for a in arrays[: self.n_tops])


class Prefetching(Reading):
    """Prepares its next batch in a thread while the net uses the last.

    Its random numbers come from separate streams, one for the list's order and one for the transformations. Their
    seeds are drawn from the net's stream, when the layer is set up and, in noh, in every pass.
    """

    mean_file: bool = True
    """Whether it accepts a ``mean_file``."""

    def setup(self) -> None:
        self.transformer = self.read_transformations()
        if not self.dialect.data_seeded_each_batch:
            self._seed_transformations()
        source = self.open()
        self._seed_transformations()
        if not self.dialect.data_seeded_each_batch:
            self.seed_thread(self.draw())
        self.shapes = source.shapes[: self.n_tops]
        self.prefetcher = Prefetcher(source)
        self._start()

    def open(self) -> Batches:
        """Create the source of batches, after drawing the seeds of its order."""
        raise NotImplementedError

    def reshape(self) -> list[Shape]:
        return self.shapes

    def forward(self) -> tuple[Tensor, ...]:
        batch = self.prefetcher.take()
        self._start()
        self.shapes = [a.shape for a in batch[: self.n_tops]]
        return self.tensors(batch)

    def get_position(self) -> State:
        return self.prefetcher.get_state()

    def set_position(self, state: State) -> None:
        self.prefetcher.set_state(state)

    def seed_thread(self, seed: int) -> None:
        """Take the seed of the thread's own stream, for layers that draw from it."""

    # -- what a subclass uses ------------------------------------------------------------------------------------------

    def read_transformations(self) -> Transformer:
        """The ``transform_param``."""
        t = self.fields.transform_param
        t.skip("force_color", "force_gray")  # for encoded records only
        mean: Any = np.array(t.mean_value, np.float32) if t.mean_value else None
        if t.has("mean_file"):
            if mean is not None or not self.mean_file:
                found = "mean_file and mean_value" if mean is not None else "a mean_file"
                raise self.error(
                    found, expected="one of them" if mean is not None else "mean_value: it takes no mean_file"
                )
            mean = np.asarray(read_mean(self.find(t.mean_file, "mean file")), np.float32)
        train = self.phase == "TRAIN"
        return Transformer(scale=t.scale, mirror=t.mirror, crop=t.crop_size, mean=mean, train=train)

    def reader(self) -> Reader:
        """Reads the pictures of an ``image_data_param``."""
        p = self.p
        size = (p.new_height, p.new_width)
        if (size[0] > 0) != (size[1] > 0):
            raise self.error(f"new_height {size[0]} and new_width {size[1]}", expected="both or none")
        return Reader(self.places, p.root_folder, color=p.is_color, size=size)

    def cursor(self, count: int) -> Cursor:
        """A position in a list, shuffled and advanced at random as ``image_data_param`` sets."""
        stream = Stream(self.draw()) if self.p.shuffle else None
        skip = self.draw() % self.p.rand_skip if self.p.rand_skip else 0
        if skip >= count:
            raise self.error(f"{skip} items to skip (rand_skip) of {count}", expected="more items than are skipped")
        return Cursor(count, stream, skip)

    def draw(self) -> int:
        """A word of the net's stream (caffe_rng_rand)."""
        return int(default_stream().words(1)[0])

    def _start(self) -> None:
        if self.dialect.data_seeded_each_batch:
            self._seed_transformations()
        self.prefetcher.start()

    def _seed_transformations(self) -> None:
        if self.transformer.draws:
            self.transformer.seed(self.draw())
