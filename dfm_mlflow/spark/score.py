"""Scoring parts in Spark's executors: each task reads, scores and writes its own.

A part goes through ``mapInPandas`` as one row of paths, and only counts come back. MLflow's
``spark_udf`` needs the pictures in a column, moves them through the JVM twice, and its output
cannot be continued: ``benchmarks/spark.py`` measures both.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

import dfm_mlflow
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.mlflow_plugin.bundle import Bundle
from dfm_mlflow.scores.parts import AS_IT_IS, Asked, OutputFolder, Part, score_part
from dfm_mlflow.spark.session import check_version, keep_to_processors
from dfm_mlflow.storage.store import S3Object

_ROW = "part int, name string, paths array<string>, etags array<string>, sizes array<long>, "
_ROW += "shown array<string>"
_COUNTS = "images long, errors long, anomalous long"


def cores(spark: Any) -> int:
    """Cores of the cluster that the session sees; 8 where it does not tell (Spark Connect)."""
    return int(spark.sparkContext.defaultParallelism) if hasattr(spark, "_sc") else 8


def score_parts(
    spark: Any,
    parts: Sequence[Part],
    bundle: Bundle,
    folder: OutputFolder,
    asked: Asked = AS_IT_IS,
) -> list[tuple[int, int, int]]:
    """Score parts and write their files; gives what :func:`score_part` gives of each."""
    rows = [_row(part) for part in parts]
    version = dfm_mlflow.__version__

    def work(tables: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        check_version(version)
        keep_to_processors()
        detector = _detector(bundle)
        for table in tables:
            for row in table.itertuples(index=False):
                counts = score_part(detector, _part(row), folder, asked)
                yield pd.DataFrame([counts], columns=["images", "errors", "anomalous"])

    listed = spark.createDataFrame(rows, _ROW)
    # a task for each part: one that fails is done again alone
    counted = listed.repartitionByRange(len(rows), "part").mapInPandas(work, _COUNTS)
    return [(row.images, row.errors, row.anomalous) for row in counted.collect()]


@lru_cache(maxsize=1)
def _detector(bundle: Bundle) -> AnomalyDetector:
    """One copy of the model in a worker process, which Spark uses for many tasks."""
    return bundle.load()


def _row(part: Part) -> tuple[int, str, list[str], list[str], list[int], list[str]]:
    remote = [
        s if isinstance(s, S3Object) else S3Object(str(Path(s).absolute()), "", -1)
        for s in part.sources
    ]
    return (
        part.number,
        part.name,
        [s.uri for s in remote],
        [s.etag for s in remote],
        [s.size for s in remote],
        list(part.shown),
    )


def _part(row: Any) -> Part:
    sources = [
        Path(path) if size < 0 else S3Object(path, etag, int(size), cached=False)
        for path, etag, size in zip(row.paths, row.etags, row.sizes, strict=True)
    ]
    return Part(int(row.part), row.name, tuple(sources), tuple(row.shown))
