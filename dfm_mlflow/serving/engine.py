"""One version of a model, ready to answer; and the change from one version to another."""

import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.maps import to_png
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.network.extractor import Extractor, Runner
from dfm_mlflow.serving.batcher import Batcher, Observer
from dfm_mlflow.serving.limits import Turn
from dfm_mlflow.serving.threads import network_threads, prepare_worker, share_of_processors

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """What is known of a version that is served."""

    digest: str = ""  # SHA-256 of its ``detector.json``
    name: str = ""
    number: str = ""

    @property
    def words(self) -> str:
        """How a line of the log goes on that names it; nothing where it is not known."""
        return f"; version {self.number} of {self.name}" if self.number else ""


@dataclass(frozen=True)
class Observers:
    """Who is told how long parts of a request took."""

    batch: Observer | None = None  # as :class:`~dfm_mlflow.serving.batcher.Batcher` takes it
    decode: Callable[[float], None] | None = None  # called with the seconds of each decoding

    def behind(self, gate: threading.Event) -> "Observers":
        """Give observers that see nothing before the `gate` is open."""
        batch, decode = self.batch, self.decode
        return Observers(
            batch and (lambda *seen: batch(*seen) if gate.is_set() else None),
            decode and (lambda seconds: decode(seconds) if gate.is_set() else None),
        )


class Engine:
    """A detector with its queue: requests of several threads share forward passes."""

    def __init__(
        self,
        detector: AnomalyDetector,
        settings: ServingSettings,
        version: Version | None = None,
        observers: Observers | None = None,
    ):
        extractor = detector.extractor
        self.detector, self.version = detector, version or Version()
        self.batcher: Batcher | None = None
        self._warm = threading.Event()  # what warms it up is no request
        self._observers = (observers or Observers()).behind(self._warm)
        self._in_server = _compat.in_scoring_server()
        if not settings.queue_size:
            return
        before = torch.get_num_threads()
        threads = network_threads(settings, extractor.device)
        self.batcher = Batcher(
            forward_of(extractor),
            batch_size=settings.batch_size,
            max_wait=settings.max_wait_ms / 1000,
            queue_size=settings.queue_size,
            prepare=lambda: prepare_worker(threads, extractor.device),
            observe=self._observers.batch,
        )
        torch.set_num_threads(before)
        self._decoding = threading.BoundedSemaphore(share_of_processors())
        weakref.finalize(self, self.batcher.close)

    def admit(self) -> AbstractContextManager[None]:
        """Hold a place for one request of the calling thread; see :meth:`Batcher.admit`."""
        return self.batcher.admit() if self.batcher else nullcontext()

    def score(self, images: Sequence[Any], **given: Any) -> pd.DataFrame:
        """Score pictures as :meth:`AnomalyDetector.score` does, through the queue."""
        return self._scorer().score(images, **given)

    def warm_up(self) -> None:
        """Score grey pictures, so that the first request is as fast as the hundredth."""
        extractor = self.detector.extractor
        height, width = extractor.size
        picture = to_png(np.full((height + 8, width + 8, 3), 128, np.uint8))

        def warm(n: int) -> None:
            with self.admit():
                self.score([picture] * n, anomaly_map=n == 1)

        warm(1)
        if extractor.device.type == "cuda":  # kernels are chosen and loaded by batch size
            for power in range(1, extractor.batch_size.bit_length()):
                warm(2**power)
            warm(extractor.batch_size)
        elif extractor.batch_size > 1:
            warm(2)  # more of them would keep a CPU for seconds, and warm nothing else
        self._warm.set()

    def close(self) -> None:
        """Answer what is in the queue, and end its thread."""
        if self.batcher:
            self.batcher.close()
            self.batcher.join(60)

    def _scorer(self) -> AnomalyDetector:
        """Give the detector through the batcher, for one request."""
        if self.batcher is None:
            return self.detector
        # what a client no longer waits for is not worth a picture more
        seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get() if self._in_server else math.inf
        turn = Turn(self._decoding, seconds, self._observers.decode)
        extractor = self.detector.extractor.with_runner(self.batcher.run, turn)
        return self.detector.with_extractor(extractor)


class Engines:
    """The engine that answers, and its change: a request is answered by one from end to end."""

    def __init__(self, engine: Engine):
        self._current = engine
        self._changed = threading.Condition()
        self._users = {engine: 0}

    @property
    def current(self) -> Engine:
        """The one that the next request gets."""
        return self._current

    @contextmanager
    def lease(self) -> Iterator[Engine]:
        """Give the calling thread an engine that stays until the block ends."""
        with self._changed:
            engine = self._current
            self._users[engine] += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._users[engine] -= 1
                self._changed.notify_all()

    def swap(self, engine: Engine) -> None:
        """Let another engine answer from the next request on, and end the old one.

        It comes back when the old one has answered its last request.
        """
        with self._changed:
            old, self._current = self._current, engine
            self._users[engine] = 0
            self._changed.wait_for(lambda: not self._users[old])
            del self._users[old]
        old.close()


def forward_of(extractor: Extractor) -> Runner:
    """Give the function that runs the network of an `extractor`, and ends when it has run."""
    if extractor.device.type != "cuda":
        return extractor.run_batch
    stream = torch.cuda.current_stream(extractor.device)

    def run(pixels: torch.Tensor) -> list[torch.Tensor]:
        maps = extractor.run_batch(pixels)
        stream.synchronize()  # while a batch runs, the next one gathers
        return maps

    return run
