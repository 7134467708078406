"""A proxy that can be told to misbehave, and a real S3 server (moto's) behind it."""

import http.client
import http.server
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
_buckets = (f"bucket-{i}" for i in itertools.count())


@dataclass
class Traffic:
    """The requests that were made, and what is to become of coming ones.

    ``faults`` holds (method, part of the path, what to do), each used once: ``"503"``, ``("cut",
    n)``: break the connection after n bytes of the body, ``"whole"``: ignore the range,
    ``"lost"``: carry the request out and never answer, or a function to call before the request
    goes on.
    """

    faults: list[tuple[str, str, object]] = field(default_factory=list, kw_only=True)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list, kw_only=True)

    def take(self, method: str, path: str) -> object:
        self.requests.append((method, path, {}))
        for fault in self.faults:
            if fault[0] == method and fault[1] in path:
                self.faults.remove(fault)
                return fault[2]
        return None


@dataclass
class Store(Traffic):
    """A bucket of its own."""

    url: str
    bucket: str
    client: object

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return f"s3://{self.bucket}/{key}"

    def upload(self, folder: Path, prefix: str) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{self.bucket}/{prefix}"

    def gets(self, part: str = "") -> list[dict[str, str]]:
        """Headers of the requests for objects whose path holds a part."""
        return [h for m, p, h in self.requests if m == "GET" and "list-type" not in p and part in p]


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of a client that went away: the tests provoke it."""


def _handler(port: int, current: list[Traffic]) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def _forward(self):
            store, headers = current[-1], dict(self.headers)
            body = self.rfile.read(int(headers.get("Content-Length", 0)))
            fault = store.take(self.command, self.path)
            store.requests[-1][2].update(headers)
            if fault == "503":
                return self._send(503, {}, SLOW_DOWN)
            if isinstance(fault, Callable):
                fault()
            if fault == "whole":
                headers.pop("Range")
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            if fault == "lost":
                self.close_connection = True
                return
            cut = fault[1] if isinstance(fault, tuple) else None
            self._send(answer.status, dict(answer.headers), data, cut)
            upstream.close()

        def _send(self, status, headers, data, cut=None):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:cut])
            self.close_connection = cut is not None

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _forward  # noqa: N815

    return Handler


@contextmanager
def proxy(port: int, current: list[Traffic]) -> Iterator[str]:
    """Stand before a server on this machine; the last of `current` says what happens."""
    with _Proxy(("127.0.0.1", 0), _handler(port, current)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, str, list[Store]]]:
    from moto.server import ThreadedMotoServer  # slow to import, and few tests need it

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    current: list[Store] = []
    with proxy(port, current) as url:
        yield f"http://127.0.0.1:{port}", url, current
    moto.stop()


@pytest.fixture
def s3_store(s3_server, monkeypatch, tmp_path) -> Iterator[Store]:
    import boto3

    direct, proxied, current = s3_server
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxied,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "DFM_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    store = Store(proxied, next(_buckets), boto3.client("s3", endpoint_url=direct))
    store.client.create_bucket(Bucket=store.bucket)
    current.append(store)
    yield store
    current.pop()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Waits between tries, which are noted and not waited for."""
    waited: list[float] = []
    # not in the module `time` itself: other threads sleep, too
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=waited.append))
    return waited
