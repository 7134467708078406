"""One real Spark of two cores for all tests, where Java and pyspark are installed."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest


def _missing() -> str | None:
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed: pip install 'dfm-mlflow[spark]'"
    if not shutil.which("java") and "JAVA_HOME" not in os.environ:
        return "there is no Java: apt-get install default-jre-headless"
    return None


@pytest.fixture(scope="session")
def spark(s3_server, tmp_path_factory):
    if reason := _missing():
        pytest.skip(reason)
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "512m")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.python.daemon.module", "tests.spark.daemon")
        .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parents[2]))
        # executors have credentials of their own
        .config("spark.executorEnv.AWS_ACCESS_KEY_ID", "testing")
        .config("spark.executorEnv.AWS_SECRET_ACCESS_KEY", "testing")
        .config("spark.executorEnv.AWS_DEFAULT_REGION", "us-east-1")
        .config("spark.executorEnv.AWS_ENDPOINT_URL", s3_server[1])
        .config("spark.executorEnv.DFM_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    yield session
    session.stop()
