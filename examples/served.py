"""``mlflow models serve`` for as long as a ``with`` block lasts; shared by the examples."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(uri: str, seconds: float = 120) -> Iterator[str]:
    """Serve a model on a free port of this machine; gives the server's URL."""
    url = f"http://127.0.0.1:{free_port()}"
    # MLflow looks for `uvicorn` on the path: it must be the one beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            uri,
            "--env-manager",
            "local",
            "--host",
            "127.0.0.1",
            "--port",
            url.rpartition(":")[2],
        ],
        env={**os.environ, "PATH": path},
        start_new_session=True,
    )
    try:
        wait_for(f"{url}/ping", server, seconds)
        yield url
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)  # it has workers
            server.wait(30)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, server: subprocess.Popen, seconds: float) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"The server stopped with status {server.returncode}.")
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"The server did not answer within {seconds:.0f} s.")
