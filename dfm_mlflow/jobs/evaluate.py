"""From a model and new pictures to a run: metrics where they are labelled, drift in any case."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
import numpy as np
from mlflow.data.dataset import Dataset
from mlflow.entities import LoggedModelInput
from mlflow.models import Model

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.core.calibration import Drift, measure_drift
from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.errors import DataError
from dfm_mlflow.evaluation import (
    Evaluation,
    image_metrics,
    measured_sentence,
    pixel_metrics_of,
    score_items,
)
from dfm_mlflow.images.catalog import Catalog, load_catalog
from dfm_mlflow.images.item import GOOD, Item
from dfm_mlflow.jobs.kept import MODEL_ID, kept_on_outage
from dfm_mlflow.jobs.run import log_dataset, log_parameters, log_results, run_of, timed
from dfm_mlflow.mlflow_plugin.flavor import load_model

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
    """

    run_id: str
    metrics: dict[str, float]
    sentences: list[str]


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Score new pictures with a model, in the active or a new MLflow run.

    A folder with ``test/<label>`` is labelled and gives the metrics of a training run; a flat
    folder is not. Of all of them, or of the good ones where they are labelled, the p-values are
    compared with those of the calibration.

    Parameters
    ----------
    options : EvaluateOptions

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
    detector = load_model(options.model)
    data, catalog = _catalog(options, detector)
    model_id = Model.load(options.model).model_id
    name, tags = f"evaluate-{catalog.name}", {"dfm.job": "evaluate", "dfm.category": catalog.name}
    parameters = {"resolved_model": options.model, "resolved_data": data}
    with run_of(name, tags) as run:
        dataset = _log_origin(run.info.run_id, parameters, catalog)
        labelled = bool(catalog.test)
        found = measure(detector, catalog.test if labelled else catalog.train, labelled)
        _, metrics, sentences = found
        for sentence in sentences:
            _logger.info(sentence)

        def log_elsewhere(run_id: str) -> None:
            _log(options, detector, catalog, found, _log_origin(run_id, parameters, catalog), None)
            if model_id:  # no model of that store
                mlflow.set_tag(MODEL_ID, model_id)

        with kept_on_outage(run.info.run_id, name, tags, log_elsewhere):
            if model_id:  # the run's page names the model
                models = [LoggedModelInput(model_id)]
                mlflow.MlflowClient().log_inputs(run.info.run_id, models=models)
            _log(options, detector, catalog, found, dataset, model_id)
    return EvaluateResult(run.info.run_id, metrics, sentences)


def _catalog(options: EvaluateOptions, detector: AnomalyDetector) -> tuple[str, Catalog]:
    """Give the data's address, and its pictures."""
    categories = detector.class_names
    if options.category != "auto":
        categories = tuple(dict.fromkeys(options.category.split(",")))
    data = detector.options.data if options.data == "auto" else options.data
    catalog = load_catalog(data, categories, to_fit=False)
    if not catalog.test and options.data == "auto":
        raise DataError(
            f"The model's own data, {data}, holds only pictures that it was fitted to: give "
            "data=<folder> of new ones."
        )
    return data, catalog


def _log(
    options: EvaluateOptions,
    detector: AnomalyDetector,
    catalog: Catalog,
    found: tuple[Evaluation, dict[str, float], list[str]],
    dataset: Dataset,
    model_id: str | None,
) -> None:
    evaluation, metrics, sentences = found
    mlflow.set_tag("calibration", " ".join(sentences))
    mlflow.log_metrics(metrics, model_id=model_id, dataset=dataset)
    log_results(
        detector,
        catalog,
        evaluation,
        metrics,
        sentences,
        labelled=bool(catalog.test),
        model_uri=options.model,
    )


def _log_origin(run_id: str, parameters: dict[str, str], catalog: Catalog) -> Dataset:
    log_parameters(run_id, parameters)
    return log_dataset(catalog, "evaluation")


def measure(
    detector: AnomalyDetector, items: Sequence[Item], labelled: bool
) -> tuple[Evaluation, dict[str, float], list[str]]:
    """Score pictures, and say what that shows: in metrics, and in words.

    Parameters
    ----------
    detector : AnomalyDetector
    items : sequence of Item
    labelled : bool
        Whether their labels are known; without them there is drift alone.

    Returns
    -------
    evaluation : Evaluation
    metrics : dict of str to float
    sentences : list of str

    Raises
    ------
    DataError
        If no picture can be read.
    """
    evaluation, seconds = timed(lambda: score_items(detector, items))
    metrics = {"images_per_second": len(items) / max(seconds, 1e-9)}
    metrics |= _counts(evaluation, labelled)
    sentences = [detector.calibration_sentence()]
    if labelled:
        metrics |= image_metrics(evaluation.table)
        metrics |= pixel_metrics_of(detector, items, evaluation)
        sentences += measured_sentence(detector, evaluation.table)
    drift = _drift(detector, evaluation, labelled)
    if drift is not None:
        metrics |= {
            "drift_flagged": drift.flagged,
            "drift_ks": drift.statistic,
            "drift_appearance": drift.appearance,
            "drift_significance": drift.significance,
        }
        sentences.append(drift_sentence(drift, detector))
    thresholds = detector.thresholds().values()
    metrics |= {"threshold": max(thresholds), "effective_fpr": detector.effective_fpr()}
    return evaluation, metrics, sentences


def drift_sentence(drift: Drift, detector: AnomalyDetector) -> str:
    """Say of a `drift` whether new pictures look like those of the calibration of a `detector`."""
    unlikely = drift.significance < 0.01
    verdict = (
        "they differ from the calibration's good pictures: look at camera, lamp and product"
        if unlikely
        else "they look like the calibration's good pictures"
    )
    return (
        f"{drift.flagged:.1%} of the pictures are flagged where at most "
        f"{detector.effective_fpr():.1%} is promised for good ones; their p-values are "
        f"{drift.statistic:.2f} and their leading coordinates up to {drift.appearance:.2f} from "
        f"uniform (Kolmogorov-Smirnov, significance {drift.significance:.2g}): {verdict}."
    )


def _counts(evaluation: Evaluation, labelled: bool) -> dict[str, float]:
    read = evaluation.table["error"].isna()
    if not read.any():
        raise DataError(
            f"None of {len(read)} pictures can be read, the first because: "
            f"{evaluation.table['error'].iloc[0]}"
        )
    key = "n_test" if labelled else "n_images"
    return {key: float(read.sum()), "n_unreadable": float((~read).sum())}


def _drift(detector: AnomalyDetector, evaluation: Evaluation, labelled: bool) -> Drift | None:
    table = evaluation.table[evaluation.table["error"].isna()]
    if labelled:  # known defects are no drift
        table = table[table["label"] == GOOD]
    if table.empty:
        return None
    places = np.stack([evaluation.seen[i].places for i in table.index])
    flagged = table["is_anomaly"].to_numpy(np.bool_)
    n = min(len(c.calibration.scores) for c in detector.classes)
    return measure_drift(table["p_value"].to_numpy(float), flagged, places, n)
