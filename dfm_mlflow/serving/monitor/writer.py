"""The process beside a server's worker that writes its log and watches for its alarm.

A process of its own, because uvicorn ends a worker by the signal that it was sent, after which no
code of it runs: this one ends at the end of its socket, whatever has ended the worker, and writes
what it was handed before. It needs neither torch nor MLflow.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dfm_mlflow.core.share_test import ShareTest as ShareTest  # SciPy is loaded with it, at once
from dfm_mlflow.errors import DfmError
from dfm_mlflow.serving.monitor.alarm import Alarm, Watch, Watched
from dfm_mlflow.serving.monitor.flusher import SECONDS, Flusher
from dfm_mlflow.serving.monitor.log_store import LogStore
from dfm_mlflow.serving.monitor.slot import LastLife
from dfm_mlflow.serving.monitor.webhook import Webhook
from dfm_mlflow.serving.monitor.wire import receive, send
from dfm_mlflow.storage.served_log import COLUMNS

LAST_SECONDS = 45.0  # after the end of the worker
_LAST_POST, _LAST_READ = 5.0, 2.0
_MOST = 100_000  # pictures that wait for the state of the last life
_AT_ONCE = 64  # pictures that the tests look at together
_ALARM = list(COLUMNS).index("alarm")
_SENTENCES = {
    "flagged": "{flagged} of {seen} pictures were flagged, more than is expected",
    "drift": "the pictures that are not flagged no longer look like the good ones of the "
    "calibration",
}

_logger = logging.getLogger("dfm_mlflow.serving.monitor.writer")


class Writer:
    """What the process does with messages."""

    def __init__(self, end: socket.socket, config: dict[str, Any]):
        self._end, self._config = end, config
        self._store: LogStore | None = None
        self._flusher: Flusher | None = None
        workers = config["workers"]
        if config["log_to"] is not None:
            self._store = LogStore(
                config["log_to"], config["log_megabytes"], config["keep_megabytes"], workers
            )
            self._flusher = Flusher(self._store, self._state, config.get("seconds", SECONDS))
        self._watch: Watch | None = None
        if config["drift_alarm"] is not None:
            self._watch = Watch(config["drift_alarm"] / workers, config["expected_flagged"])
        address = config["alarm_webhook"]
        self._webhook = Webhook(address) if address else None
        self._last_life: LastLife | None = None
        if self._store and self._watch:
            self._last_life = LastLife(self._store, workers)
        self._state_text: str | None = None
        self._classes: dict[str, Watched] = {}
        self._model: dict[str, Any] = {"digest": None}
        self._waiting: deque[tuple[list[Any], tuple[str | None, float]]] = deque(maxlen=_MOST)
        self._remembers = self._last_life is None
        self.n_received, self._bytes_received = 0, 0

    def take(self, message: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Take over a `message` with its `blobs`."""
        if message["kind"] == "model":
            self._begin(message)
        elif message["kind"] == "rows":
            self._rows(message, blobs)
        self._bytes_received += sum(map(len, blobs))

    def tick(self) -> None:
        """Do what time asks for, and tell the worker how it stands."""
        self._recall()
        self._look()
        with suppress(OSError):  # it is gone, or slow: the next one says the same and more
            send(self._end, {"kind": "status", **self.status()})

    def status(self) -> dict[str, Any]:
        """Say how it stands: what is written and lost, and the alarm."""
        dropped: Counter[str] = Counter()
        written: Counter[str] = Counter()
        if self._flusher:
            dropped, written = self._flusher.dropped, self._flusher.written
        return {
            "remembers": self._remembers,
            "received": self.n_received,
            "bytes": self._bytes_received,
            "written": dict(written),
            "dropped": dict(dropped),
            "evicted": self._store.n_evicted if self._store else {},
            "alarm": self._watch.state() if self._watch else {},
            "webhook": dict(self._webhook.counts) if self._webhook else {},
        }

    def finish(self) -> None:
        """Write and post what is left, in bounded time."""
        if self._last_life:
            self._last_life.ready.wait(_LAST_READ)
        self._recall()
        self._look()
        end = time.monotonic() + self._config.get("last_seconds", LAST_SECONDS)
        if self._webhook:
            self._webhook.close(_LAST_POST)
        lost = self._flusher.close(max(1.0, end - time.monotonic())) if self._flusher else 0
        if lost:
            _logger.error(
                "%d rows and pictures are lost: %s could not be written before the end.",
                lost,
                self._config["log_to"],
            )

    # -- rows --------------------------------------------------------------------------------------

    def _rows(self, message: dict[str, Any], blobs: Sequence[bytes]) -> None:
        rows = [[*row, None] for row in message["rows"]]
        self.n_received += len(rows)
        # a request that was under way during a swap is of no version that is watched any more
        if self._watch and message["model"] == self._model["digest"]:
            self._waiting += zip(rows, message["cautious"], strict=True)
        if self._flusher:
            self._flusher.add(rows, list(zip(message["pictures"], blobs, strict=True)))
        if len(self._waiting) >= _AT_ONCE:
            self._look()

    def _look(self) -> None:
        """Show the tests the p-values that wait, and mark the row at which an alarm was raised.

        Sixty-four cost hardly more than one. A row that is marked has not been written yet, unless
        parts are.
        """
        if not self._remembers:
            return
        waiting = list(self._waiting)
        self._waiting.clear()
        of_class: dict[str, list[float]] = defaultdict(list)
        last: dict[str, list[Any]] = {}
        for row, (name, p) in waiting:
            if name in self._classes:
                of_class[name].append(p)
                last[name] = row
        for name, p_values in of_class.items():
            assert self._watch
            for alarm in self._watch.update(name, p_values):
                marks = (last[name][_ALARM], alarm.kind)
                last[name][_ALARM] = ",".join(mark for mark in marks if mark)
                self._raise(alarm)
        if of_class:
            self._keep_state()

    # -- the alarm ---------------------------------------------------------------------------------

    def _begin(self, message: dict[str, Any]) -> None:
        self._look()  # those that wait were scored by the version before
        self._model = message
        self._classes = {name: Watched(*values) for name, values in message["classes"].items()}
        self._recall()
        if self._remembers:
            self._start_tests()

    def _start_tests(self) -> None:
        if not self._watch or not self._classes:
            return
        try:
            self._watch.begin(self._model["digest"], self._classes)
        except DfmError as error:
            self._classes = {}
            _logger.warning("Version %s has no alarm. %s", self._model["version"], error)
        self._keep_state()

    def _recall(self) -> None:
        """Go on with the state of the alarm that an earlier worker left, once it has been read."""
        if self._remembers or not self._last_life or not self._last_life.ready.is_set():
            return
        self._remembers = True
        try:
            if self._last_life.text is not None and self._watch:
                self._watch.restore(self._last_life.text)
        except DfmError as error:
            _logger.warning("%s", error)
        self._start_tests()

    def _raise(self, alarm: Alarm) -> None:
        what = _SENTENCES[alarm.kind].format(flagged=alarm.n_flagged, seen=alarm.seen)
        sentence = (
            f"Alarm ({alarm.kind}) of {alarm.category}, model version {self._model['version']}: "
            f"{what}. Look at camera, lamp and product."
        )
        _logger.warning("%s", sentence)
        if self._webhook:
            self._webhook.send(
                {
                    "alarm": alarm.kind,
                    "category": alarm.category,
                    "model": self._model["name"],
                    "model_version": self._model["version"],
                    "sha256": alarm.model,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "host": socket.gethostname(),
                    "pictures": alarm.seen,
                    "flagged": alarm.n_flagged,
                    "evidence": alarm.evidence,
                    "promise": self._config["drift_alarm"],
                    "sentence": sentence,
                }
            )
        self._keep_state()
        if self._flusher:
            self._flusher.flush_soon()

    def _keep_state(self) -> None:
        self._state_text = self._watch.to_json() if self._watch else None

    def _state(self) -> tuple[int, str] | None:
        """Give the state for the flusher, in its thread."""
        number = self._last_life.slot.number if self._last_life else None
        text = self._state_text
        return None if number is None or text is None else (number, text)


def main() -> None:
    """Serve the worker at the other end of the descriptor that is named by the first argument."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its end is that of the socket
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    end = socket.socket(fileno=int(sys.argv[1]))
    first = receive(end)
    if first is None:
        return
    writer = Writer(end, first[0])
    end.settimeout(1.0)
    told = 0.0
    while True:
        try:
            message = receive(end)
        except TimeoutError:
            pass
        else:
            if message is None:
                break
            writer.take(*message)
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            writer.tick()
    writer.finish()
    logging.shutdown()
    os._exit(0)  # a thread that hangs in a dead target keeps nobody


if __name__ == "__main__":
    main()
