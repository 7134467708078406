"""A real ``mlflow models serve``, and requests to it; examples/servers.py starts processes."""

import io
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

from servers import (  # noqa: F401
    ServerError,
    Url,
    free_port,
    started,
    stop,
    tracking_server,
    wait_for,
)

PARQUET = "application/vnd.apache.parquet"


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


def serving(path, log, *, environment=os.environ, **model_config):
    """Serve a model until the block ends; gives its address."""
    config = {"MLFLOW_PYFUNC_INFERENCE_CONFIG": json.dumps(model_config)}
    command = ["models", "serve", "-m", str(path), "--env-manager", "local"]
    return started(command, "/ping", log, {**environment, **config})
