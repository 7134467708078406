"""The worker's side of the writer: hand rows over, hear what became of them, start it again."""

import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.serving.monitor.wire import pair, receive, send

_KEYS = (
    "log_to",
    "log_megabytes",
    "keep_megabytes",
    "drift_alarm",
    "expected_flagged",
    "alarm_webhook",
)
_BYTES_UNDER_WAY = 64 << 20  # of pictures that the writer has not taken yet
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a writer that died is started again

_logger = logging.getLogger(__name__)


class Channel:
    """A writer process and the socket to it.

    Nothing here waits: a row is handed over with one system call, or dropped and counted.
    """

    def __init__(
        self,
        settings: ServingSettings,
        workers: int,
        model: dict[str, Any],
        on_status: Callable[[dict[str, Any]], None],
        extra: dict[str, Any] | None = None,
    ):
        self._config = {key: getattr(settings, key) for key in _KEYS}
        self._config |= {"workers": workers, **(extra or {})}
        self._model, self._on_status = model, on_status
        self._lock = threading.Lock()
        self.dropped: Counter[str] = Counter()
        self._end: socket.socket | None = None
        self._sent, self._taken, self._written = 0, 0, 0
        self._bytes_sent, self._bytes_taken = 0, 0
        self._closed = False
        self._process = self._start()
        threading.Thread(target=self._listen, name="dfm-log", daemon=True).start()

    def begin(self, model: dict[str, Any]) -> None:
        """Tell the writer that another version is served; `model` describes it."""
        with self._lock:
            self._model = model
            try:
                if self._end:
                    send(self._end, model)
            except OSError:
                pass  # it is told when it is started again; until then it watches nothing else

    def hand_over(
        self, message: dict[str, Any], n_rows: int, pictures: Sequence[bytes] = ()
    ) -> None:
        """Give the rows of one request to the writer."""
        size = sum(map(len, pictures))
        with self._lock:
            if size and self._bytes_sent - self._bytes_taken + size > _BYTES_UNDER_WAY:
                self.dropped["picture"] += len(pictures)
                message, pictures, size = {**message, "pictures": []}, (), 0
            try:
                if self._end is None:
                    raise BrokenPipeError
                send(self._end, message, pictures)
            except OSError:  # the queue is full, or nobody is there
                self.dropped["writer"] += n_rows
                self.dropped["picture"] += len(pictures)
                return
            self._sent += n_rows
            self._bytes_sent += size

    def close(self, seconds: float) -> None:
        """End the writer when it has written everything, and wait for it so many `seconds`."""
        with self._lock:
            self._closed = True
            end, self._end = self._end, None
            if end:
                end.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            _logger.warning("The log is still being written %.0f s after the end.", seconds)

    def _start(self) -> "subprocess.Popen[bytes]":
        ours, theirs = pair()
        command = [sys.executable, "-m", "dfm_mlflow.serving.monitor.writer", str(theirs.fileno())]
        with theirs:
            # a session of its own: a signal to the server's group is not its end
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        for message in (self._config, self._model):  # what is secret is on no command line
            send(ours, message)
        self._end = ours
        return process

    def _listen(self) -> None:
        """Hear how the writer stands; where it died, count what it lost and start another."""
        deaths = 0
        while True:
            end = self._end
            begun = time.monotonic()
            while end and (found := receive(end)):
                self._hear(found[0])
            if self._closed:
                return
            with self._lock:
                self._end = None
                if end:
                    end.close()
                lost = self._sent - self._written if self._config["log_to"] else 0
                self.dropped["writer"] += lost
                self._sent = self._taken = self._written = 0
                self._bytes_sent = self._bytes_taken = 0
            deaths = 0 if time.monotonic() - begun > 60 else deaths + 1
            pause = _PAUSES[min(deaths, len(_PAUSES)) - 1] if deaths else _PAUSES[0]
            _logger.error(
                "The process that writes the log ended (%s), with %d rows that it had not "
                "written; another one begins in %.1f s.",
                self._process.wait(),
                lost,
                pause,
            )
            time.sleep(pause)
            with self._lock:
                if self._closed:
                    return
                try:
                    self._process = self._start()
                except OSError as error:
                    _logger.error("It cannot be started (%s).", error)

    def _hear(self, status: dict[str, Any]) -> None:
        with self._lock:
            self._taken = status["received"]
            self._bytes_taken = status["bytes"]
            lost = sum(n for reason, n in status["dropped"].items() if reason != "picture")
            self._written = status["written"].get("rows", 0) + lost
        self._on_status(status)
