"""The review page on this machine alone: each verdict is in the file before it is called saved."""

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dfm_mlflow.data.names import may_be_either, means_good
from dfm_mlflow.data.verdicts import VERDICTS, PictureVerdict, append_verdict
from dfm_mlflow.errors import ConfigError, DfmError

HOST = "127.0.0.1"
_MOST_BYTES = 10_000  # of one verdict
_MOST_TEXT = 200  # characters of a cell that somebody writes

_logger = logging.getLogger(__name__)


class ReviewServer(ThreadingHTTPServer):
    """Serves one page, and appends what is sent to it."""

    daemon_threads = True

    def __init__(
        self,
        page: Callable[[str], str],
        known: Mapping[str, PictureVerdict],
        path: Path,
        port: int = 0,
    ):
        # A page of somebody else's can send requests here, but cannot read the token.
        self.token = secrets.token_urlsafe(24)
        self.page, self.known, self.path = page(self.token).encode(), known, path
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port={port} cannot be used ({getattr(error, 'strerror', error)}): give another "
                "one, or auto."
            ) from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def take(self, sent: Mapping[str, Any]) -> str | None:
        """Append a verdict that was `sent`; gives why it is refused, or None."""
        said = {k: str(sent.get(k) or "").strip() for k in ("sha256", "verdict", "defect", "who")}
        said["when"] = str(sent.get("when") or "").strip()
        known, defect = self.known.get(said["sha256"]), said["defect"]
        if known is None:
            return "this picture is not on the page"
        if said["verdict"] not in VERDICTS:
            return f"a verdict is one of {', '.join(VERDICTS)}"
        if max(map(len, said.values())) > _MOST_TEXT or any(c < " " for c in defect):
            return f"a name has at most {_MOST_TEXT} characters in one line"
        if defect and (said["verdict"] != "bad" or means_good(defect) or may_be_either(defect)):
            return f"the defect {defect} may mean good: call it by another name"
        try:
            append_verdict(self.path, replace(known, **said))
        except DfmError as error:
            return str(error)
        return None


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, b"There is one page here: /.")
            return
        self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        token = self.headers.get("X-Review-Token", "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._answer(HTTPStatus.FORBIDDEN, b"This page is of another server: load it again.")
            return
        try:
            n = int(self.headers.get("Content-Length", ""))
            if self.path != "/verdicts" or not 0 < n <= _MOST_BYTES:
                raise ValueError
            sent = json.loads(self.rfile.read(n))
            assert isinstance(sent, dict)
        except (ValueError, AssertionError, RecursionError):
            self._answer(HTTPStatus.BAD_REQUEST, b"This is not a verdict.")
            return
        refusal = self.server.take(sent)
        status = HTTPStatus.BAD_REQUEST if refusal else HTTPStatus.OK
        self._answer(status, (refusal or "saved").encode())

    def _is_ours(self) -> bool:
        """Refuse names that lead here from elsewhere (DNS rebinding)."""
        port = self.server.server_address[1]
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self._answer(HTTPStatus.FORBIDDEN, b"Open the address that the command named.")
        return False

    def _answer(
        self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _logger.debug(format, *args)
