"""What every job does with MLflow: take over or open a run, log parameters, data and results."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource

from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.evaluation import Evaluation
from dfm_mlflow.images.catalog import Catalog
from dfm_mlflow.report.html import write_report


@contextmanager
def run_of(name: str, tags: Mapping[str, str]) -> Iterator[mlflow.ActiveRun]:
    """Take over the active run or the one that ``mlflow run`` opened, else start one."""
    active = mlflow.active_run()
    if active:
        yield active
        return
    given = os.environ.get("MLFLOW_RUN_ID")
    with mlflow.start_run(run_name=None if given else name) as run:
        mlflow.set_tags(dict(tags))
        yield run


def log_parameters(run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters, and the commit of the code where it is a checkout."""
    # `mlflow run` logged its raw parameters already, and a parameter cannot change.
    known = mlflow.get_run(run_id).data.params
    mlflow.log_params({k: v for k, v in params.items() if k not in known})
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    if commit.returncode == 0:
        mlflow.set_tag("dfm.git_commit", commit.stdout.strip())


def log_dataset(catalog: Catalog, context: str) -> None:
    """Log where the pictures came from, with a digest of their contents."""
    source = (
        resolve_dataset_source(catalog.source)
        if catalog.source.startswith("s3://")
        else LocalArtifactDatasetSource(catalog.source)
    )
    dataset = MetaDataset(source, name=catalog.name[:500], digest=catalog.digest)
    mlflow.log_input(dataset, context=context)


def log_results(
    detector: AnomalyDetector,
    catalog: Catalog,
    evaluation: Evaluation,
    metrics: dict[str, float],
    sentences: list[str],
    *,
    labelled: bool = True,
) -> None:
    """Log the report with its pictures, and the scored pictures as a table."""
    if not labelled:
        table = evaluation.table.assign(label="unlabelled", defective=None)
        evaluation = Evaluation(table, evaluation.seen)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_report(folder / "report", detector, catalog, evaluation, metrics, sentences)
        mlflow.log_artifacts(str(folder / "report"), "report")
        if len(evaluation.table):
            evaluation.table.to_parquet(folder / "scores.parquet", index=False)
            mlflow.log_artifact(str(folder / "scores.parquet"))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Give the result of some work and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def summary(metrics: Mapping[str, float], sentences: list[str], where: Mapping[str, str]) -> str:
    """Say in a few lines what a job found; the last is JSON for scripts."""
    shown = ("image_auroc", "image_f1", "pixel_aupro", "precision", "recall",
             "false_positive_rate", "threshold")  # fmt: skip
    lines = [f"{name:20s} {metrics[name]:.4g}" for name in shown if name in metrics]
    lines += [*sentences, *(f"{kind.removesuffix('_uri'):6s} {uri}" for kind, uri in where.items())]
    return "\n".join([*lines, json.dumps(dict(where))])
