"""One thread for linear algebra, for as long as anybody needs it so; and work side by side.

The number of BLAS threads belongs to the process, and so two fits that overlap in time cannot each
save and restore it: the second would save the 1 that the first has set, restore it last, and leave
the process slow for good. Here entries are counted. The first limits, the last restores, and both
is done by a thread of its own, as threadpoolctl 3.8 lets only the thread that has set a limit lift
it again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from joblib import cpu_count
from threadpoolctl import ThreadpoolController

MOST_BESIDE = 128 << 20  # bytes of what each works on, where several do at once

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, so once


class _Keeper(threading.Thread):
    """Holds the limit from its start until it is told to let go."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="one-blas-thread")
        self._limited, self._done = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            with _controller().limit(limits=1, user_api="blas"):
                self._limited.set()
                self._done.wait()
        finally:
            self._limited.set()

    def hold(self) -> None:
        self.start()
        self._limited.wait()

    def let_go(self) -> None:
        self._done.set()
        self.join()


class _Limit:
    """How many are inside, and who keeps the limit for them."""

    def __init__(self) -> None:
        self._lock, self._inside, self._keeper = threading.Lock(), 0, _Keeper()

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._keeper = _Keeper()
                self._keeper.hold()
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._keeper.let_go()


_LIMIT = _Limit()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Give linear algebra one thread while the context is entered, here and in other threads.

    Contexts may nest, and overlap between threads; the last one to leave restores what the first
    one found.
    """
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()


def side_by_side(work: Callable[[T], R], values: Sequence[T], n_bytes: Sequence[int]) -> list[R]:
    """Give what `work` makes of every value; where all are small, on a core each.

    Passes of NumPy over an array take one core, and products of long rows wait for memory more than
    for another one: the five layers of the default preset took 0.7 of the time, on two cores.

    n_bytes: Size of what each value stands for; the largest are begun first.
    """
    cores = cpu_count()
    if min(cores, len(values)) < 2 or max(n_bytes) > MOST_BESIDE:
        return [work(value) for value in values]
    order = sorted(range(len(values)), key=lambda i: -n_bytes[i])
    with single_threaded(), ThreadPoolExecutor(min(cores, len(values))) as pool:
        running = {i: pool.submit(work, values[i]) for i in order}
        try:
            return [running[i].result() for i in range(len(values))]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has begun is waited for
            raise
