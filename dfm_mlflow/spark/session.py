"""A Spark session, and its failures in one sentence."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from threadpoolctl import threadpool_limits

import dfm_mlflow
from dfm_mlflow import errors
from dfm_mlflow.errors import SparkError

MASTER = "DFM_SPARK_MASTER"


@contextmanager
def session_of(session: Any = None) -> Iterator[Any]:
    """Give a session, or the active one, or a new one that ends with the context.

    A new one takes its master from ``DFM_SPARK_MASTER``, else from Spark's own configuration
    (``spark-submit``, ``spark-defaults.conf``, ``SPARK_REMOTE``), else ``local[*]``.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise SparkError(
            "engine=spark needs pyspark, which is not installed: pip install 'dfm-mlflow[spark]', "
            "or use engine=local."
        ) from None
    session = session or SparkSession.getActiveSession()
    if session is not None:
        with task_errors_raised():
            yield session
        return
    master = os.environ.get(MASTER)
    builder = SparkSession.builder.appName("dfm-mlflow")
    if master:
        builder = builder.remote(master) if master.startswith("sc://") else builder.master(master)
    if not (master or "").startswith("sc://") and "SPARK_REMOTE" not in os.environ:
        _check_java()
    if master is None or master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers on this machine
    try:
        session = builder.getOrCreate()
    except Exception as error:  # py4j, gRPC and pyspark each have their own
        raise SparkError(
            f"No Spark session at {master or 'the configured master'} ({_first_line(error)}): "
            f"check {MASTER}, and that java runs."
        ) from None
    try:
        with task_errors_raised():
            yield session
    finally:
        session.stop()


@contextmanager
def task_errors_raised() -> Iterator[None]:
    """Turn an error of a task into the error that it raised there."""
    from pyspark.errors import PySparkException

    try:
        yield
    except errors.DfmError:
        raise
    except Exception as error:
        if not (isinstance(error, PySparkException) or type(error).__module__ == "py4j.protocol"):
            raise
        raise task_error(str(error)) from error


def task_error(text: str) -> errors.DfmError:
    """Error of a task, from the `text` that Spark tells of it."""
    found = re.findall(r"^(?:\w+\.)*errors\.(\w+): (.+)$", text, re.M)
    for name, sentence in found:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.DfmError):
            return kind(sentence.strip())
    missing = re.search(r"^ModuleNotFoundError: No module named '([\w.]+)'", text, re.M)
    if missing:
        return SparkError(
            f"The executors lack the Python package {missing[1].partition('.')[0]}: install "
            f"dfm-mlflow=={dfm_mlflow.__version__} with its requirements on every worker, for the "
            "Python that PYSPARK_PYTHON names."
        )
    return SparkError(f"The Spark job failed ({_first_line(text)}): see the executors' logs.")


def check_version(version: str) -> None:
    """Refuse to run a task if the driver's `version` is not the executor's own."""
    if version != dfm_mlflow.__version__:
        raise SparkError(
            f"An executor has dfm-mlflow {dfm_mlflow.__version__} and the driver {version}: "
            "install the same version on both."
        )


def keep_to_processors() -> None:
    """Give network and linear algebra of the calling task the threads that Spark counts for it.

    That is ``spark.task.cpus``. Else each of the tasks that run side by side would take all
    processors, and wait for the others at every step: a fit on two cores took longer than on one.
    Reading and decoding have threads of their own.
    """
    from pyspark import TaskContext

    if context := TaskContext.get():
        _limit_threads(context.cpus())


@lru_cache(maxsize=1)
def _limit_threads(n: int) -> None:
    """Once in a worker process, which Spark uses for many tasks."""
    import torch

    torch.set_num_threads(n)
    threadpool_limits(n)


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not shutil.which("java") and not (home and shutil.which("java", path=f"{home}/bin")):
        raise SparkError(
            "engine=spark needs Java 17 or newer, and there is no java: apt-get install "
            "default-jre-headless, or set JAVA_HOME."
        )


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".:") if lines else type(error).__name__
