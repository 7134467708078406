"""The one thread that writes rows and pictures, however slow or full the target is."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from dfm_mlflow.errors import DataError
from dfm_mlflow.serving.monitor.bounded import TooLargeError
from dfm_mlflow.serving.monitor.log_store import LogStore, Row

SECONDS = 60.0  # between two parts, unless
ROWS = 10_000  # so many rows wait
_MOST_ROWS = 5 * ROWS  # that wait for a target which fails
_MOST_BYTES = 64 << 20  # of pictures that wait
_PAUSE = 5.0  # seconds after a picture that could not be written

_logger = logging.getLogger(__name__)


class Flusher:
    """Writes what it is handed, in a thread of its own; what finds no room is counted."""

    def __init__(
        self,
        store: LogStore,
        state: Callable[[], tuple[int, str] | None] = lambda: None,
        seconds: float = SECONDS,
    ):
        self._store, self._state, self._seconds = store, state, seconds
        self._changed = threading.Condition()
        self._rows: deque[Row] = deque()
        self._pictures: deque[tuple[str, bytes]] = deque()
        self._bytes, self._in_hand = 0, 0
        self._now, self._ending = False, False
        self._due = time.monotonic() + seconds
        self._failing = False
        self._pause_until = 0.0
        self._state_written = ""
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="dfm-flusher", daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[Row], pictures: Sequence[tuple[str, bytes]]) -> None:
        """Take over what is to be written; never waits."""
        with self._changed:
            self._rows += rows
            while self._rows and len(self._rows) + self._in_hand > _MOST_ROWS:
                self._rows.popleft()
                self.dropped["target"] += 1
            for sha256, data in pictures:
                if self._bytes + len(data) > _MOST_BYTES:
                    self.dropped["picture"] += 1
                    continue
                self._pictures.append((sha256, data))
                self._bytes += len(data)
            self._changed.notify()

    def flush_soon(self) -> None:
        """Write a part now, as there is something that must not wait."""
        with self._changed:
            self._now = True
            self._changed.notify()

    def close(self, seconds: float) -> int:
        """Write what is left, for so many `seconds` at most."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            rows, pictures = len(self._rows) + self._in_hand, len(self._pictures)
            self.dropped["target"] += rows
            self.dropped["picture"] += pictures
            return rows + pictures

    # -- the thread's side -------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=self._until_due())
                ending = self._ending
                due = ending or self._is_due()
                self._now = False
            self._write_pictures(ending)
            if due or len(self._rows) >= ROWS:
                self._due = time.monotonic() + self._seconds
                self._write_rows()
                self._write_state()
            if ending:
                return

    def _has_work(self) -> bool:
        pictures = bool(self._pictures) and time.monotonic() >= self._pause_until
        enough = len(self._rows) >= ROWS and not self._failing
        return self._ending or pictures or enough or self._is_due()

    def _is_due(self) -> bool:
        return self._now or time.monotonic() >= self._due

    def _until_due(self) -> float:
        until = self._due if not self._pictures else min(self._due, self._pause_until)
        return max(0.05, until - time.monotonic())

    def _write_rows(self) -> None:
        while True:
            with self._changed:
                rows = [self._rows.popleft() for _ in range(min(ROWS, len(self._rows)))]
                self._in_hand = len(rows)
            if not rows:
                return
            wrote = self._try(lambda rows=rows: self._store.add_rows(rows))  # type: ignore[misc]
            with self._changed:
                self._in_hand = 0
                if wrote == "again":
                    self._rows.extendleft(reversed(rows))
                    return
                if wrote == "lost":
                    self.dropped["target"] += len(rows)
                else:
                    self.written["rows"] += len(rows)

    def _write_pictures(self, ending: bool) -> None:
        while self._pictures and (ending or time.monotonic() >= self._pause_until):
            with self._changed:
                sha256, data = self._pictures[0]
            wrote = self._try(lambda s=sha256, d=data: self._store.keep(s, d))  # type: ignore[misc]
            if wrote == "again":
                self._pause_until = time.monotonic() + _PAUSE
                return
            with self._changed:
                self._pictures.popleft()
                self._bytes -= len(data)
                if wrote == "lost":
                    self.dropped["picture"] += 1
                else:
                    self.written["pictures"] += 1

    def _write_state(self) -> None:
        found = self._state()
        if found is not None and found[1] != self._state_written:
            slot, text = found
            if self._try(lambda: self._store.write_state(slot, text)) == "":
                self._state_written = text

    def _try(self, work: Callable[[], None]) -> str:
        """Do it; says "again" where another try is worth it, "lost" where none is."""
        try:
            work()
        except TooLargeError:
            return "lost"
        except (OSError, DataError) as error:
            if not self._failing:  # once for each time that it begins to fail
                _logger.warning("The log cannot be written now, and its rows wait: %s", error)
            self._failing = True
            return "again"
        except Exception:  # a mistake of ours must not end the thread
            _logger.exception("A part of the log is lost.")
            return "lost"
        if self._failing:
            _logger.info("The log can be written again.")
        self._failing = False
        return ""
