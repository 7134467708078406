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


class Url(str):
    """An address, with the process that answers there."""

    process: subprocess.Popen


@contextmanager
def started(command, page, log, environment=None):
    """Run one of MLflow's servers in the folder of its log until the block ends; gives its address.

    The server is there when it answers at `page`.
    """
    url = Url(f"http://127.0.0.1:{free_port()}")
    with open(log, "w") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                *command,
                "--host",
                "127.0.0.1",
                "--port",
                url.rpartition(":")[2],
            ],
            env=environment,
            cwd=log.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    url.process = process
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}{page}", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def serving(path, log, *, environment=os.environ, **model_config):
    """Serve a model until the block ends; gives its address."""
    # MLflow looks for `uvicorn` on the path: it must be the one beside this Python
    path_list = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment = {
        **environment,
        "PATH": path_list,
        "MLFLOW_PYFUNC_INFERENCE_CONFIG": json.dumps(model_config),
    }
    command = ["models", "serve", "-m", str(path), "--env-manager", "local"]
    return started(command, "/ping", log, environment)
