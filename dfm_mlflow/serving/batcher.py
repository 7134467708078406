"""Join the forward passes of concurrent requests: one worker thread, one queue, one device.

A caller decodes its pictures in its own thread, hands the pixels in, and gets the feature maps of
exactly these pixels back. What is joined is only the network.
"""

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from torch import Tensor

from dfm_mlflow.network.extractor import Runner

# Pictures, seconds of waiting of each request, seconds of the batch, requests that are admitted.
Observer = Callable[[int, list[float], float, int], None]

_logger = logging.getLogger(__name__)

_alive: "weakref.WeakSet[Batcher]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End the workers before the interpreter does: one that it stops inside torch aborts it."""
    for batcher in list(_alive):
        batcher.close()
        batcher.join(10)


class OverloadedError(Exception):
    """As many requests as the queue takes are being served already."""


class _Job:
    """Pixels of one caller, at most one batch of them."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels
        self.handed_in = time.monotonic()
        self.maps: Future[list[Tensor]] = Future()

    def __len__(self) -> int:
        return len(self.pixels)


class Batcher:
    """Runs the network on pixels of several callers at once."""

    def __init__(
        self,
        forward: Runner,
        *,
        batch_size: int,
        max_wait: float,
        queue_size: int,
        prepare: Callable[[], None] | None = None,
        observe: Observer | None = None,
    ):
        self._observe = observe
        self.batch_size, self.max_wait, self.queue_size = batch_size, max_wait, queue_size
        self._forward = forward
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._admitted = 0  # requests between the two ends of `admit`
        self._coming = 0  # those of them that have handed nothing in yet
        self._closed = False
        self._caller = threading.local()
        ready: Future[None] = Future()
        self._worker = threading.Thread(
            target=self._work, args=(prepare, ready), name="dfm-batcher", daemon=True
        )
        _alive.add(self)
        self._worker.start()
        ready.result()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for one request of the calling thread."""
        with self._changed:
            if self._admitted >= self.queue_size:
                raise OverloadedError
            self._admitted += 1
            self._coming += 1
        self._caller.is_coming = True
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1
                self._arrive()

    def run(self, pixels: Tensor) -> list[Tensor]:
        """Give the feature maps of pixels; blocks until they are made.

        Shapes: pixels (n, 3, H, W) uint8; gives (n, C, h, w), one for each layer.
        """
        parts = [self._hand_in(part) for part in pixels.split(self.batch_size)]
        return parts[0] if len(parts) == 1 else [torch.cat(m) for m in zip(*parts, strict=True)]

    @property
    def n_admitted(self) -> int:
        """Requests that hold a place now."""
        return self._admitted

    def close(self) -> None:
        """Stop the worker once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait until the worker has ended, for so many `seconds` at most."""
        self._worker.join(seconds)

    def _hand_in(self, pixels: Tensor) -> list[Tensor]:
        job = _Job(pixels)
        with self._changed:
            if self._closed or not self._worker.is_alive():
                raise RuntimeError(
                    "The thread that runs the network is gone, because the model was closed or its "
                    "process forked: load the model again in this process."
                )
            self._queue.append(job)
            self._arrive()
            self._changed.notify()
        return job.maps.result()

    def _arrive(self) -> None:
        """Count the calling thread's request as come; holds the lock."""
        if getattr(self._caller, "is_coming", False):
            self._caller.is_coming = False
            self._coming -= 1
            self._changed.notify()

    # -- the worker's side -------------------------------------------------------------------------

    def _work(self, prepare: Callable[[], None] | None, ready: "Future[None]") -> None:
        try:
            if prepare:
                prepare()
            ready.set_result(None)
        except BaseException as error:
            ready.set_exception(error)
            return
        while self._serve_next():
            pass

    def _serve_next(self) -> bool:
        # a function of its own, so that no batch is kept alive while the next one is waited for
        jobs = self._take()
        self._serve(jobs)
        return bool(jobs)

    def _take(self) -> list[_Job]:
        """Wait for a batch, in the order of handing in; nothing when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return []
            until = self._queue[0].handed_in + self.max_wait
            while self._coming and sum(map(len, self._queue)) < self.batch_size:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            jobs = [self._queue.popleft()]
            room = self.batch_size - len(jobs[0])
            while self._queue and len(self._queue[0]) <= room:
                jobs.append(self._queue.popleft())
                room -= len(jobs[-1])
            return jobs

    def _serve(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            self._run_together(jobs)
            return
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].maps.set_exception(error)
                return
            _logger.warning(
                "A batch of %d requests failed (%s) and is run one by one.",
                len(jobs),
                type(error).__name__,
            )
        # outside the handler: what the failed batch held in memory is free by now
        for job in jobs:
            self._serve([job])

    def _run_together(self, jobs: list[_Job]) -> None:
        pixels = jobs[0].pixels if len(jobs) == 1 else torch.cat([job.pixels for job in jobs])
        begun = time.monotonic()
        maps = self._forward(pixels)
        if any(len(m) != len(pixels) for m in maps):
            raise RuntimeError(f"The network gave other than {len(pixels)} maps.")
        parts = [m.split([len(job) for job in jobs]) for m in maps]
        for i, job in enumerate(jobs):
            job.maps.set_result([part[i] for part in parts])
        if self._observe:
            waits = [begun - job.handed_in for job in jobs]
            self._observe(len(pixels), waits, time.monotonic() - begun, self._admitted)
