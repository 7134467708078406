"""A free port, a real ``mlflow models serve`` process, and requests to it."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

PARQUET = "application/vnd.apache.parquet"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer, parse_constant=pytest.fail)  # no NaN
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(url):
    """Status of a page within 10 s."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def parquet(images):
    buffer = io.BytesIO()
    pd.DataFrame({"image": images}).to_parquet(buffer)
    return buffer.getvalue()


class ServerError(RuntimeError):
    """Something that a server needs is missing, or it ended before it answered."""


class Url(str):
    """An address, with the process that answers there."""

    process: subprocess.Popen


@contextmanager
def started(command, page, log, environment=os.environ, *, port=None):
    """Run one of MLflow's servers in the folder of its log until the block ends; gives its address.

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
            cwd=log.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(f"{url}{page}", url.process, log)
        yield url
    finally:
        stop(url.process)


def wait_for(page, process, log, seconds=180):
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"{page} does not answer: {log.read_text()[-2000:]}")


def stop(process, number=signal.SIGTERM):
    """End a server that was started with a session of its own."""
    if process.poll() is None:
        os.killpg(process.pid, number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def tracking_server(database, log, *arguments, artifacts=None, environment=os.environ, port=None):
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


def serving(path, log, *, environment=os.environ, **model_config):
    """Serve a model until the block ends; gives its address."""
    config = {"MLFLOW_PYFUNC_INFERENCE_CONFIG": json.dumps(model_config)}
    command = ["models", "serve", "-m", str(path), "--env-manager", "local"]
    return started(command, "/ping", log, {**environment, **config})
