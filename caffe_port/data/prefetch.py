"""Prefetching: the next batch is made in a thread while the last is in use."""

from __future__ import annotations

import threading

from caffe_port.data.batches import Array, Batches, State, too_large

__all__ = ["Prefetcher"]


class _Job(threading.Thread):
    """Makes one batch.

    The thread ends with it, so that nothing has to be stopped when a net is dropped. It is not a daemon thread:
    Python waits for the current batch at exit, because a daemon thread that
    returns from OpenCV into an ended interpreter aborts the process.
    """

    def __init__(self, source: Batches) -> None:
        super().__init__(name="caffe_port data")
        self.source = source
        self.before = source.get_state()
        self.batch: tuple[Array, ...] = ()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.batch = self.source.make()
        except MemoryError:
            self.error = too_large(self.source.shapes)
        except BaseException as error:  # raised again in the thread that takes the batch
            self.error = error


class Prefetcher:
    """Makes the next batch of ``source`` in a thread; after :meth:`start`, the source is this object's alone."""

    def __init__(self, source: Batches) -> None:
        self.source = source
        self._job: _Job | None = None

    def start(self) -> None:
        """Begin with the next batch, in the background."""
        self._job = _Job(self.source)
        self._job.start()

    def take(self) -> tuple[Array, ...]:
        """The current batch, when it is done; :meth:`start` begins with the one after.

        Raises:
            CaffeError: it could not be made; taking it again raises the same.
        """
        assert self._job is not None, "nothing was started"
        self._job.join()
        if self._job.error is not None:
            raise self._job.error
        return self._job.batch

    def get_state(self) -> State:
        """The position of the batch that is being made, which has not been taken yet."""
        assert self._job is not None, "nothing was started"
        return dict(self._job.before)

    def set_state(self, state: State) -> None:
        """Drop the current batch and begin with the one at ``state``."""
        if self._job is not None:
            self._job.join()
        self.source.set_state(state)
        self.start()
