"""From a model and new pictures to a run: metrics where they are labelled, drift in any case."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelInput
from mlflow.models import Model

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import pictures_to_judge, with_masks
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DataError
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.mlflow_plugin.model_uri import ResolvedModel, resolve
from dfm_mlflow.scores.measure import Measured, measure
from dfm_mlflow.scores.operating_points import costs_of
from dfm_mlflow.scores.served import is_log, measure_log, read_log
from dfm_mlflow.scores.verdict import RESULT, Verdict, say
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.kept import MODEL_ID, kept_on_outage
from dfm_mlflow.tracking.run import (
    as_given,
    data_name,
    log_dataset,
    log_parameters,
    log_results,
    run_of,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation found.

    Attributes
    ----------
    run_id : str
    metrics : dict of str to float
    sentences : list of str
        The same in words.
    verdict : Verdict
        What the model decides, and what is wrong with that.
    """

    run_id: str
    metrics: dict[str, float]
    sentences: list[str]
    verdict: Verdict


def evaluate(options: EvaluateOptions, *, experiment: str = AUTO) -> EvaluateResult:
    """Score new pictures with a model, in the active or a new MLflow run.

    A folder with ``test/<label>`` is labelled and gives the metrics of a training run; a flat
    folder is not. Of all of them, or of the good ones where they are labelled, the p-values are
    compared with those of the calibration.

    Parameters
    ----------
    options : EvaluateOptions
    experiment : str
        As for :func:`~dfm_mlflow.jobs.train.train`.

    Returns
    -------
    EvaluateResult

    Raises
    ------
    DfmError
        For a model or data that cannot be used.
    DataError
        If the model's own data hold only pictures that it was fitted to, and no other are named.
    """
    resolved = resolve(options.model)
    model = resolved.uri  # an alias that moves meanwhile moves nothing here
    detector = load_model(model)
    if is_log(options.data):
        return _evaluate_log(options, resolved, detector, experiment)
    data, catalog = _catalog(options, detector)
    model_id = Model.load(model).model_id
    name = "-".join(filter(None, ("evaluate", catalog.name, data_name(data, catalog.name))))
    tags = {"dfm.job": "evaluate", "dfm.category": catalog.name}
    parameters = {"resolved_model": model, "resolved_data": data, **as_given(options)}
    with run_of(name, tags, experiment) as run:
        log_parameters(run.info.run_id, parameters)
        labelled = bool(catalog.test)
        found = measure(detector, catalog.test if labelled else catalog.train, labelled)
        found.metrics["n_unused_files"] = float(catalog.account.n_unused)
        catalog.note(found.evaluation.looks())
        for sentence in found.sentences:
            _logger.info(sentence, extra=RESULT)
        verdict = say(_logger, found.verdict, found.points, costs_of(detector.options))

        def log_elsewhere(run_id: str) -> None:
            log_parameters(run_id, parameters)
            _log(model, detector, catalog, found, None)
            if model_id:  # no model of that store
                mlflow.set_tag(MODEL_ID, model_id)

        with kept_on_outage(run.info.run_id, name, tags, log_elsewhere):
            if model_id:  # the run's page names the model
                models = [LoggedModelInput(model_id)]
                mlflow.MlflowClient().log_inputs(run.info.run_id, models=models)
            _log(model, detector, catalog, found, model_id)
    return EvaluateResult(run.info.run_id, found.metrics, found.sentences, verdict)


def _evaluate_log(
    options: EvaluateOptions, resolved: ResolvedModel, detector: AnomalyDetector, experiment: str
) -> EvaluateResult:
    """Say what the rows of a server's log show; no picture is scored."""
    version = str(resolved.version.version) if resolved.version else None
    table = read_log(options.data, version)
    metrics, sentences, verdict, points = measure_log(detector, table)
    name = f"evaluate-{'-'.join(detector.class_names)}-log"[:250]
    tags = {"dfm.job": "evaluate", "dfm.category": ",".join(detector.class_names)}
    with run_of(name, tags, experiment) as run:
        given = {"resolved_model": resolved.uri, "resolved_data": options.data}
        log_parameters(run.info.run_id, given | as_given(options))
        mlflow.log_metrics(metrics, model_id=Model.load(resolved.uri).model_id)
        mlflow.set_tag("calibration", " ".join(sentences))
        with tempfile.TemporaryDirectory() as folder:
            table.to_parquet(Path(folder) / "scores.parquet", index=False)
            mlflow.log_artifact(str(Path(folder) / "scores.parquet"))
    for sentence in sentences:
        _logger.info(sentence)
    say(_logger, verdict, points, costs_of(detector.options))
    return EvaluateResult(run.info.run_id, metrics, sentences, verdict)


def _catalog(options: EvaluateOptions, detector: AnomalyDetector) -> tuple[str, Catalog]:
    """Give the data's address, and its pictures."""
    categories = detector.class_names
    if options.category != "auto":
        categories = tuple(dict.fromkeys(options.category.split(",")))
    data = detector.options.data if options.data == "auto" else options.data
    catalog = with_masks(
        pictures_to_judge(options, detector.options, categories), detector.options.max_pixels
    )
    if not catalog.test and options.data == "auto":
        raise DataError(
            f"The model's own data, {data}, holds only pictures that it was fitted to: give "
            "data=<folder> of new ones."
        )
    return data, catalog


def _log(
    model: str,
    detector: AnomalyDetector,
    catalog: Catalog,
    found: Measured,
    model_id: str | None,
) -> None:
    dataset = log_dataset(catalog, "evaluation")
    mlflow.set_tag("calibration", " ".join(found.sentences))
    mlflow.log_metrics(found.metrics, model_id=model_id, dataset=dataset)
    log_results(
        detector,
        catalog,
        found.evaluation,
        found.metrics,
        found.sentences,
        found.verdict,
        model_uri=model,
    )
