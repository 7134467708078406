"""Files of several workers in one folder that never grows beyond a limit: the oldest go first."""

from collections.abc import Callable
from typing import Any

from dfm_mlflow.storage.dated_folder import Dated, DatedFolder

_SHARE = 16  # of the limit that all workers together may write between two looks at the folder


class TooLargeError(Exception):
    """A file is larger than the whole folder may be."""


class Bounded:
    """A folder below another one, held to a limit by all who write to it.

    Each of W workers looks at the folder, removes the oldest files down to 15/16 of the limit, and
    then writes 1/16 W of it before it looks again: so all of them together keep the limit without
    speaking to each other.

    What comes first to the eyes of a worker is older: the clock, which may jump, decides only
    between files that were there before it.
    """

    def __init__(
        self,
        folder: DatedFolder,
        below: str,
        limit: int,
        workers: int,
        age: Callable[[Dated], Any],
    ):
        self._folder, self._below, self._limit, self._workers = folder, below, limit, workers
        self._age = age
        self._allowance = limit // (_SHARE * workers)
        self._left = 0
        self._order: dict[str, int] = {}
        self._next = 0
        self.newest: Dated | None = None
        self.n_evicted = 0

    def put(self, name: str, data: bytes) -> None:
        """Write `data` as the file `name` below the folder, after room was made for it."""
        if len(data) > self._limit:
            raise TooLargeError
        if len(data) > self._left:
            self.make_room(len(data))
        self._folder.write(name, data)
        self._left -= len(data)
        self._order.pop(name, None)  # what is written again is new
        self._see(name)

    def make_room(self, size: int) -> None:
        """Remove the oldest files of the folder until each worker can add `size` bytes."""
        by_age = sorted(self._folder.files(self._below), key=self._age)
        self.newest = by_age[-1] if by_age else None
        for file in by_age:
            self._see(file.name)
        found = sorted(by_age, key=lambda file: self._order[file.name])
        each = max(self._allowance, size)
        total, most = sum(file.size for file in found), max(0, self._limit - self._workers * each)
        for file in found:
            if total <= most:
                break
            self._folder.delete(file.name)
            total -= file.size
            self.n_evicted += 1
        names = {file.name for file in found}
        self._order = {name: place for name, place in self._order.items() if name in names}
        self._left = each

    def _see(self, name: str) -> None:
        if name not in self._order:
            self._order[name] = self._next
            self._next += 1
