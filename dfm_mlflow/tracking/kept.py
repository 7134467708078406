"""Results that could not be logged: kept in a local MLflow store, and logged from there later."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, Run
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from dfm_mlflow.errors import DataError
from dfm_mlflow.mlflow_plugin import _compat
from dfm_mlflow.mlflow_plugin.flavor import MODEL_CONFIG, load_model, log_model
from dfm_mlflow.storage.paths import local_path
from dfm_mlflow.tracking.lineage import LINEAGE
from dfm_mlflow.tracking.outage import outage
from dfm_mlflow.tracking.registration import register, tags_of
from dfm_mlflow.tracking.run import run_of

MODEL_ID = "dfm.model_id"  # a tag of a kept run: its model, which the server knows
KEPT = "dfm-kept"  # folder in the working directory, with one folder a run
_DATABASE, _ARTIFACTS, _EXPERIMENT = "mlflow.db", "artifacts", "kept"
_PARAMETER, _EVALUATED, _NONE = "resolved_registered_model", "resolved_model", "none"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogResult:
    """What became of kept results."""

    run_id: str
    # The registered version, the logged model where none was to be registered, or the model that
    # was evaluated.
    model_uri: str


@contextmanager
def kept_on_outage(
    run_id: str, name: str, tags: Mapping[str, str], log: Callable[[str], Any]
) -> Iterator[None]:
    """Keep results on this machine if the server or the store fails while they are logged."""
    try:
        yield
    except Exception as error:
        failure = outage(error)
        if failure is None:
            raise
        folder = Path.cwd() / KEPT / run_id
        try:
            _keep(folder, name, tags, log)
        except Exception as second:
            shutil.rmtree(folder, ignore_errors=True)
            _logger.warning("The results cannot be kept in %s: %s", folder, second)
            raise failure from error
        then = (
            f"`dfm-mlflow resume-logging {folder}` logs and registers the results, which are kept "
            "there"
        )
        raise outage(error, then) or failure from error


def _keep(folder: Path, name: str, tags: Mapping[str, str], log: Callable[[str], Any]) -> None:
    folder.mkdir(parents=True)
    with _store(folder):
        artifacts = (folder / _ARTIFACTS).as_uri()
        experiment = MlflowClient().create_experiment(_EXPERIMENT, artifacts)
        # beside the run that failed, which may be active still
        with mlflow.start_run(
            experiment_id=experiment, run_name=name, tags=dict(tags), nested=True
        ) as run:
            log(run.info.run_id)


@contextmanager
def _store(folder: Path) -> Iterator[None]:
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    here = f"sqlite:///{folder / _DATABASE}"
    mlflow.set_tracking_uri(here)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        if registry not in (tracking, here):
            mlflow.set_registry_uri(registry)


def log_kept(folder: str) -> LogResult:
    """Log and register what :func:`kept_on_outage` kept, in a new run."""
    root = local_path(folder).absolute()
    kept, artifacts, metrics = _read(root)
    assert kept.outputs is not None  # MLflow's store fills both
    assert kept.inputs is not None
    models = [output.model_id for output in kept.outputs.model_outputs]
    with _store(root):
        folders = [_compat.download(artifact_uri=f"models:/{model_id}") for model_id in models]
    tags = {key: text for key, text in kept.data.tags.items() if not key.startswith("mlflow.")}
    model_id = tags.pop(MODEL_ID, None)
    with run_of(kept.info.run_name, tags | {"dfm.kept_run": root.name}) as run:
        run_id, client = run.info.run_id, MlflowClient()
        mlflow.log_params(kept.data.params)
        mlflow.set_tags({k: v for k, v in kept.data.tags.items() if k == MLFLOW_RUN_NOTE})
        inputs = [LoggedModelInput(model_id)] if model_id else None
        client.log_inputs(run_id, kept.inputs.dataset_inputs, models=inputs)
        mlflow.log_artifacts(str(artifacts))
        uri = kept.data.params.get(_EVALUATED, "")
        if folders:
            model_id, uri = _log_model(folders[0])
        _log_metrics(run_id, metrics, model_id)
        registered = kept.data.params.get(_PARAMETER, _NONE)
        if folders and registered != _NONE:
            detector = load_model(folders[0])
            known = {m.key: m.value for m in metrics}
            about = {key: text for key, text in tags.items() if key.startswith(LINEAGE)}
            note = kept.data.tags.get(MLFLOW_RUN_NOTE, "")
            version = register(uri, registered, note, tags_of(detector, known) | about)
            uri = f"models:/{registered}/{version}"
    return LogResult(run_id, uri)


def _log_model(folder: str) -> tuple[str, str]:
    model = Model.load(folder)
    info = log_model(
        load_model(folder),
        name="model",
        metadata=model.metadata,
        input_example=model.load_input_example(folder),
        model_config=settings_of(model),
    )
    return info.model_id, info.model_uri


def _log_metrics(run_id: str, metrics: list[Metric], model_id: str | None) -> None:
    """Link all but curves to the model, as the run would have done."""
    values = Counter(m.key for m in metrics)
    MlflowClient().log_batch(run_id, metrics=[m for m in metrics if values[m.key] > 1])
    mlflow.log_metrics({m.key: m.value for m in metrics if values[m.key] == 1}, model_id=model_id)


def settings_of(model: Model) -> dict[str, Any]:
    """Give the serving settings that a `model` was saved with."""
    config = model.flavors["python_function"].get("config") or {}
    return {key: value for key, value in config.items() if key in MODEL_CONFIG}


def _read(root: Path) -> tuple[Run, Path, list[Metric]]:
    """Give the kept run, the folder of its artifacts, and every value of its metrics."""
    nothing = DataError(
        f"{root} holds no results that were kept: give the folder that the failure named, "
        f"such as {KEPT}/<run id>."
    )
    if not (root / _DATABASE).is_file():
        raise nothing
    with _store(root):
        client = MlflowClient()
        experiment = client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:  # somebody else's store
            raise nothing
        (found,) = client.search_runs([experiment.experiment_id])
        run = client.get_run(found.info.run_id)
        metrics = [
            m for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)
        ]
        artifacts = _compat.download(artifact_uri=run.info.artifact_uri)
    return run, Path(artifacts), metrics
