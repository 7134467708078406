"""MLflow's servers as processes of their own; shared by the examples and the tests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerError(RuntimeError):
    """Something that a server needs is missing, or it ended before it answered."""


class Url(str):
    """An address, with the process that answers there."""

    process: subprocess.Popen


@contextmanager
def started(
    command: list[str],
    page: str,
    log: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    port: int | None = None,
    folder: Path | None = None,
) -> Iterator[Url]:
    """Run one of MLflow's servers until the block ends; gives its address.

    It works in `folder`, or in that of its log.

    The server is there when it answers at `page`.
    """
    url = Url(f"http://127.0.0.1:{port or free_port()}")
    where = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    # MLflow looks for `uvicorn` on the path: it must be the one beside this Python
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with open(log, "a") as file:
        url.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, *where],
            env={**environment, "PATH": path},
            cwd=folder or log.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(f"{url}{page}", url.process, log)
        yield url
    finally:
        stop(url.process)


def wait_for(page: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"{page} does not answer: {log.read_text()[-2000:]}")


def stop(process: subprocess.Popen, number: int = signal.SIGTERM) -> None:
    """End a server that was started with a session of its own."""
    if process.poll() is None:
        os.killpg(process.pid, number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def tracking_server(
    database: str,
    log: Path,
    *arguments: str,
    artifacts: str | None = None,
    environment: Mapping[str, str] = os.environ,
    port: int | None = None,
) -> AbstractContextManager[Url]:
    """``mlflow server`` with one worker and artifacts beside its log; gives its address."""
    # the password is in the environment, which others cannot read, and not on the command line;
    # the jobs that the server could run for LLM evaluation are processes of their own
    settings = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    inherited = {k: v for k, v in environment.items() if not k.startswith("MLFLOW_TRACKING")}
    destination = ["--artifacts-destination", artifacts or str(log.parent / "artifacts")]
    command = ["server", "--workers", "1", *destination, *arguments]
    return started(command, "/health", log, inherited | settings, port=port)
