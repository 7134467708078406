"""Tell one address of an alarm: only that host, no redirects, and nothing secret in a log."""

import http.client
import json
import logging
import queue
import ssl
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 240.0)  # seconds between tries
_TIMEOUT = 10.0
_MOST = 100  # messages that wait

_logger = logging.getLogger(__name__)


class Webhook:
    """Posts messages in a thread of its own, each until it is taken or has been tried ten times."""

    def __init__(self, address: str, pauses: tuple[float, ...] = _PAUSES):
        parts = urlsplit(address)
        self.host = parts.hostname or ""
        self._https, self._port = parts.scheme == "https", parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pauses = pauses
        self.counts: Counter[str] = Counter()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_MOST)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dfm-webhook", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Hand in a `message`, to be sent as JSON; never waits."""
        try:
            self._waiting.put_nowait(json.dumps(message).encode())
        except queue.Full:
            self.counts["dropped"] += 1

    def close(self, seconds: float) -> None:
        """Try once more what waits, for so many `seconds` at most."""
        self._ending.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _work(self) -> None:
        while (body := self._waiting.get()) is not None:
            sent = self._deliver(body)
            self.counts["sent" if sent else "failed"] += 1

    def _deliver(self, body: bytes) -> bool:
        for pause in (*self._pauses, None):
            last = pause is None or self._ending.is_set()
            why = self._post(body)
            if why is None:
                return True
            _logger.warning(
                "The alarm could not be posted to %s (%s)%s",
                self.host,
                why,
                ": it is not tried again." if last else f"; once more in {pause:g} s.",
            )
            if last or pause is None:
                return False
            self._ending.wait(pause)
        return False

    def _post(self, body: bytes) -> str | None:
        """Send once; says why it was not taken."""
        headers = {"Content-Type": "application/json", "User-Agent": "dfm-mlflow"}
        connection = self._connection()
        start = time.monotonic()
        try:
            connection.request("POST", self._target, body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError) as error:
            # the words of an error may hold the address
            return f"{type(error).__name__} after {time.monotonic() - start:.1f} s"
        finally:
            connection.close()
        return None if 200 <= status < 300 else f"status {status}"

    def _connection(self) -> http.client.HTTPConnection:
        if not self._https:
            return http.client.HTTPConnection(self.host, self._port, timeout=_TIMEOUT)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self.host, self._port, timeout=_TIMEOUT, context=context)
