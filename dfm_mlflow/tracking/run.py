"""What every job does with MLflow: take over or open a run, log parameters, data and results."""

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import torch
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

import dfm_mlflow
from dfm_mlflow.config import StrictOptions
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import TrackingError
from dfm_mlflow.mlflow_plugin import (
    _compat,
    run_files,  # noqa: F401  # from here on runs:/ID/FILE is an address
)
from dfm_mlflow.mlflow_plugin.dataset import ImageFolderDataset
from dfm_mlflow.scores.evaluation import STEPS, Evaluation, counted, curve_points
from dfm_mlflow.scores.origin import write_scores
from dfm_mlflow.scores.training import TrainingLook
from dfm_mlflow.scores.verdict import Verdict
from dfm_mlflow.tracking.experiment import AUTO, experiment_of
from dfm_mlflow.tracking.outage import end_failed, outages_as_errors

if TYPE_CHECKING:
    from dfm_mlflow.report.look import LookSection


@contextmanager
def run_of(
    name: str,
    tags: Mapping[str, str],
    experiment: str = AUTO,
    otherwise: str | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """Take over the active run or the one that ``mlflow run`` opened, else start one.

    A run taken over keeps the name and the tags that somebody gave it.
    """
    with outages_as_errors():
        place = experiment_of(experiment, otherwise or tags.get("dfm.category"))
    active = mlflow.active_run()
    if active:
        with outages_as_errors():
            _introduce(active.info.run_id, name, tags)
            yield active
        return
    given = os.environ.get("MLFLOW_RUN_ID")
    new = None if given else name
    with outages_as_errors(), mlflow.start_run(run_name=new, experiment_id=place) as run:
        try:
            with outages_as_errors():
                _introduce(run.info.run_id, name, tags)
                yield run
        except TrackingError:
            end_failed(run)
            raise


def _introduce(run_id: str, name: str, tags: Mapping[str, str]) -> None:
    known = mlflow.get_run(run_id)
    new = {key: value for key, value in tags.items() if key not in known.data.tags}
    if _compat.is_random_name(known.info.run_name or ""):
        new[MLFLOW_RUN_NAME] = name
    mlflow.set_tags(new)


def data_name(data: str, category: str) -> str:
    """Shorten a `data` source for names of runs; empty where it says no more than `category`."""
    last = data.rstrip("/").rpartition("/")[2].removesuffix(".csv")
    return "" if last in ("auto", category) else last


def as_given(options: StrictOptions) -> dict[str, str]:
    """Write `options` as ``mlflow run`` logs its parameters, whichever door they came through."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.model_dump().items()
    }


def log_parameters(run_id: str, params: Mapping[str, Any]) -> None:
    """Log those of `params` that the run `run_id` lacks, and the commit of a checkout."""
    # `mlflow run` logged its raw parameters already, and a parameter cannot change.
    known = mlflow.get_run(run_id).data.params
    mlflow.log_params({k: v for k, v in params.items() if k not in known})
    command = ["git", "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git here: then it is no checkout that anybody works in
        return
    if commit.returncode == 0:
        mlflow.set_tag("dfm.git_commit", commit.stdout.strip())


def log_dataset(catalog: Catalog, context: str) -> ImageFolderDataset:
    """Log where the pictures came from, with a digest of their contents; metrics may name it."""
    dataset = ImageFolderDataset(catalog)
    mlflow.log_input(dataset, context=context)
    return dataset


def log_results(
    detector: AnomalyDetector,
    catalog: Catalog,
    evaluation: Evaluation,
    metrics: dict[str, float],
    sentences: list[str],
    verdict: Verdict,
    *,
    model_uri: str | None = None,
    look: "LookSection | None" = None,
) -> None:
    """Log the report with its pictures, curves as metrics, scores and the worst of them."""
    from dfm_mlflow.report.gallery import build_gallery, worst_cases  # they draw; most jobs do not
    from dfm_mlflow.report.html import write_report

    if catalog.account.used:
        sentences = [*sentences, catalog.account.sentence()]
    active = mlflow.active_run()
    assert active is not None
    run = mlflow.get_run(active.info.run_id)
    gallery = build_gallery(detector, catalog, evaluation)
    origin = _provenance(run, detector, catalog, model_uri)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_report(
            folder / "report",
            detector,
            evaluation,
            metrics,
            sentences,
            verdict,
            gallery,
            origin,
            look,
        )
        mlflow.log_artifacts(str(folder / "report"), "report")
        if len(evaluation.table):
            contents = [catalog.contents[path] for path in evaluation.table["path"]]
            table = evaluation.table.assign(sha256=contents)  # `compare` matches by it
            write_scores(table, folder / "scores.parquet", model_uri)
            mlflow.log_artifact(str(folder / "scores.parquet"))
    worst = worst_cases(gallery)
    if len(worst):
        mlflow.log_table(worst, "worst_cases.json")
    read = counted(evaluation.table)
    if len(read) and read["defective"].notna().all():
        _log_curves(run.info.run_id, read)
    if MLFLOW_RUN_NOTE not in run.data.tags:  # the description at the top of the run's page
        mlflow.set_tag(MLFLOW_RUN_NOTE, verdict.text)


def log_training(look: TrainingLook, model_uri: str | None = None) -> None:
    """Log the tables of the training pictures, and the groups of those that nearly equal others.

    `look` says what the pictures are like, and `model_uri` who was fitted to them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scores(look.scores, folder / "train_scores.parquet", model_uri)
        look.pictures.to_csv(folder / "training.csv", index=False)
        if len(look.groups):
            look.groups.to_csv(folder / "groups.csv", index=False)
        mlflow.log_artifacts(name)


def _log_curves(run_id: str, table: pd.DataFrame) -> None:
    # Not linked to the model: its page lists every value, and a curve has many.
    now = int(time.time() * 1000)
    points = [
        Metric(name, float(value), now, int(step))
        for name, curve in curve_points(table).items()
        for step, value in zip(STEPS, curve, strict=True)
    ]
    if points:
        mlflow.MlflowClient().log_batch(run_id, metrics=points)


def _provenance(
    run: mlflow.entities.Run, detector: AnomalyDetector, catalog: Catalog, model_uri: str | None
) -> dict[str, str]:
    tags = run.data.tags
    known = {
        "run": run.info.run_name,
        "run id": run.info.run_id,
        "model": model_uri,
        "git commit": tags.get("dfm.git_commit") or tags.get(MLFLOW_GIT_COMMIT),
        "data": catalog.source,
        "data digest": catalog.digest,
        "weights": detector.weights["id"],
        "weights' SHA-256": detector.weights["sha256"],
        "dfm-mlflow": dfm_mlflow.__version__,
        "MLflow": mlflow.__version__,
        "PyTorch, torchvision": f"{torch.__version__}, {version_of('torchvision')}",
        "Python": platform.python_version(),
    }
    return {name: value for name, value in known.items() if value}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Give the result of some `work` and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def summary(metrics: Mapping[str, float], sentences: list[str], where: Mapping[str, str]) -> str:
    """Say in a few lines what a job found."""
    shown = (
        "image_auroc",
        "image_f1",
        "pixel_aupro",
        "precision",
        "recall",
        "false_positive_rate",
        "threshold",
    )
    named = [f"{name} {metrics[name]:.4g}" for name in shown if name in metrics]
    lines = [", ".join(named)] if named else []
    lines += [*sentences, *(f"{kind.removesuffix('_uri'):6s} {uri}" for kind, uri in where.items())]
    return "\n".join(lines)
