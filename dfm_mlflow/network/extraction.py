"""What an extraction holds, and the threads that it runs in."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dfm_mlflow.images.depth import Words
from dfm_mlflow.images.read import Look
from dfm_mlflow.storage.store import threads_for


@dataclass(frozen=True)
class Extraction:
    """Features of the pictures that could be read."""

    # One for each layer and scale, of shape ``(m, C, h, w)``, float32, on the extractor's device.
    # Where c copies of each picture were asked for there are ``m c`` rows: the first copy of all
    # pictures, then the second, and so on.
    features: list[Tensor]
    kept: list[int]  # index of the source of each of the m rows, ascending
    errors: dict[int, str]  # why a source could not be read
    sizes: list[tuple[int, int]]  # height and width of each kept picture in pixels
    # SHA-256 of each file or object that was read, hexadecimal, by its index.
    digests: dict[int, str] = field(default_factory=dict)
    # What the values of each picture of 16-bit words show, by its index.
    words: dict[int, Words] = field(default_factory=dict)
    # Mean level of each kept picture, from 0 to 255, as the network sees it; empty where it is not
    # known.
    light: list[float] = field(default_factory=list)

    def looks(self, paths: Sequence[object]) -> dict[str, Look]:
        """Digest and size of the pictures that were read, by their `paths`, one a source."""
        size = dict(zip(self.kept, self.sizes, strict=True))
        return {str(paths[i]): Look(d, size.get(i)) for i, d in self.digests.items()}


def keys_of(extraction: Extraction) -> list[str]:
    """Name each kept picture by its content: the digest of its file, or of its features."""
    keys = []
    for row, i in enumerate(extraction.kept):
        if (known := extraction.digests.get(i)) is None:  # bytes and arrays have no file
            parts = [f[row].cpu().numpy().tobytes() for f in extraction.features]
            known = hashlib.sha256(b"".join(parts)).hexdigest()
        keys.append(known)
    return keys


@dataclass
class Prepared:
    """One picture, ready for the network, or with the maps that it gave before.

    Shapes: pixels (3, H, W) uint8, or None.
    """

    size: tuple[int, int]  # height and width of the picture in pixels
    pixels: Tensor | None = None  # (3, H, W) uint8
    cached: list[np.ndarray] | None = None  # (C, h, w) float32, or None: one for each layer
    key: str | None = None  # under which the cache is to keep the maps
    digest: str | None = None  # SHA-256 of the file that it was read from
    words: Words | None = None  # what its 16-bit values show
    light: float = math.nan  # mean level of the pixels, from 0 to 255


@dataclass
class Outcomes:
    """What became of the pictures of an extraction, beside their features, by their index."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    light: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    words: dict[int, Words] = field(default_factory=dict)

    def read(self, i: int, picture: Prepared) -> None:
        """Note a `picture` that could be read."""
        self.sizes[i], self.light[i] = picture.size, picture.light
        if picture.digest is not None:
            self.digests[i] = picture.digest
        if picture.words is not None:
            self.words[i] = picture.words

    def failed(self, i: int, why: str, digest: str | None) -> None:
        """Note a picture that could not be read."""
        self.errors[i] = why
        if digest is not None:
            self.digests[i] = digest

    def add(self, part: Extraction, at: Sequence[int]) -> None:
        """Take over what is known of the pictures of a `part`, of which i is ``at[i]`` here."""
        self.sizes |= {at[i]: size for i, size in zip(part.kept, part.sizes, strict=True)}
        self.light |= {at[i]: level for i, level in zip(part.kept, part.light, strict=True)}
        self.errors |= {at[i]: why for i, why in part.errors.items()}
        self.digests |= {at[i]: digest for i, digest in part.digests.items()}
        self.words |= {at[i]: words for i, words in part.words.items()}

    @property
    def kept(self) -> list[int]:
        """Index of each picture that could be read, ascending."""
        return sorted(self.sizes)

    def extraction(self, features: list[Tensor]) -> Extraction:
        """Put what is known beside the `features` of the pictures that could be read."""
        sizes = [self.sizes[i] for i in self.kept]
        light = [self.light[i] for i in self.kept]
        return Extraction(features, self.kept, self.errors, sizes, self.digests, self.words, light)


class Table:
    """Feature maps of n pictures, one array a layer, held once; any thread may fill rows."""

    def __init__(self, n: int, device: torch.device):
        self._n, self._device = n, device
        self._layers: list[Tensor] = []
        self._lock = Lock()  # of the first call; rows are different ones

    def put(self, index: list[int], maps: Sequence[Tensor]) -> None:
        """Store one map of shape (m, C, h, w) a layer for m pictures.

        Shapes: maps (m, C, h, w).
        """
        with self._lock:
            if not self._layers:
                self._layers = [
                    torch.empty((self._n, *m.shape[1:]), dtype=torch.float32, device=self._device)
                    for m in maps
                ]
        for layer, values in zip(self._layers, maps, strict=True):
            layer[index] = values.to(self._device)

    def rows(self, kept: list[int]) -> list[Tensor]:
        """Give the rows of some pictures in each layer.

        Gives (m, C, h, w) float32.
        """
        if len(kept) == self._n:
            return self._layers
        return [layer[kept] for layer in self._layers]


class Batches:
    """Pictures gathered into passes of the network."""

    def __init__(
        self,
        size: int,
        run: Callable[[list[tuple[int, Prepared]]], None],
        pool: Executor | None = None,
    ):
        self._size, self._run, self._pool = size, run, pool
        self._most = 2 * torch.get_num_threads()
        self._waiting: list[tuple[int, Prepared]] = []
        self._running: deque[Future[None]] = deque()

    def add(self, index: int, picture: Prepared) -> None:
        """Take one `picture`, whose place is `index`, and run a pass where enough are there."""
        self._waiting.append((index, picture))
        if len(self._waiting) == self._size:
            self._start()

    def finish(self) -> None:
        """Run what is left, and wait for all passes."""
        if self._waiting:
            self._start()
        while self._running:
            self._running.popleft().result()

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        if self._pool is None:
            self._run(batch)
            return
        self._running.append(self._pool.submit(self._run, batch))
        if len(self._running) > self._most:
            self._running.popleft().result()


@contextmanager
def workers(sources: Sequence[object], cores: int) -> Iterator[Executor | None]:
    """Threads that read and decode; none for a single picture, which they would only delay.

    With several `cores`, passes of the network run in these threads too, each on one of them. A
    pass on all cores would wait at every layer for the core that a decoder holds: measured on two
    cores, extraction took 1.1 to 1.5 times as long.
    """
    if len(sources) == 1:
        yield None
        return
    n = max(threads_for(sources), cores)
    with ThreadPoolExecutor(n, initializer=_keep_to_one_core if cores > 1 else None) as pool:
        yield pool


def _keep_to_one_core() -> None:
    torch.get_num_threads()  # the first call in a thread sets it to all cores
    threadpool_limits(1, user_api="openmp")  # of this thread alone
