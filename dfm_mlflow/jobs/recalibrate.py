"""New thresholds for an old model, from new good pictures: the subspaces and scores stay."""

import logging
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from dfm_mlflow.config import RecalibrateOptions
from dfm_mlflow.core.calibration import Calibration, is_anomaly
from dfm_mlflow.core.novelty import seems_fitted
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import pictures_to_calibrate
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import DIGITS, AnomalyDetector
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.fit import kept_items
from dfm_mlflow.jobs.train import example_of
from dfm_mlflow.mlflow_plugin.flavor import load_model, log_model
from dfm_mlflow.mlflow_plugin.model_uri import resolve
from dfm_mlflow.network.extraction import keys_of
from dfm_mlflow.registry.golden import log_golden
from dfm_mlflow.scores.verdict import RESULT
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.kept import kept_on_outage, settings_of
from dfm_mlflow.tracking.lineage import RECALIBRATED_FROM
from dfm_mlflow.tracking.registration import register, tags_of
from dfm_mlflow.tracking.run import (
    as_given,
    data_name,
    log_dataset,
    log_parameters,
    run_of,
    timed,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecalibrateResult:
    """What a recalibration left behind.

    Attributes
    ----------
    run_id : str
    model_uri : str
        Of the logged model.
    registered_uri : str
        Of the new version, or of the logged model where none was registered.
    detector : AnomalyDetector
        With the new calibration.
    metrics : dict of str to float
    sentences : list of str
        What the calibration promises, and how the threshold moved.
    """

    run_id: str
    model_uri: str
    registered_uri: str
    detector: AnomalyDetector
    metrics: dict[str, float]
    sentences: list[str]


@dataclass(frozen=True)
class _Parent:
    """The model that is recalibrated: its fixed URI, and its registered name if it has one."""

    uri: str
    name: str | None
    detector: AnomalyDetector


@dataclass(frozen=True)
class _Recalibrated:
    """What there is to log."""

    origin: str  # URI of the model that it was
    detector: AnomalyDetector
    items: list[Item]  # that it was calibrated on
    metrics: dict[str, float]
    sentences: list[str]
    settings: dict[str, Any]  # of serving


def recalibrate(options: RecalibrateOptions, *, experiment: str = AUTO) -> RecalibrateResult:
    """Calibrate a model on new good pictures, in the active or a new MLflow run.

    They were never fitted, so their plain scores are held out. The result is a new version; the old
    one stays as it is. Pictures that the model was fitted to are refused: by their digests always,
    and by scores that are too low for new ones unless `force` and a reason say otherwise.

    Parameters
    ----------
    options : RecalibrateOptions
    experiment : str
        As for :func:`~dfm_mlflow.jobs.train.train`.

    Raises
    ------
    DfmError
        For a model or pictures that cannot be used. Nothing is registered then.
    DataError
        For pictures that the model was fitted to.
    """
    parent = _load(options.model)
    category = _category(options.category, parent.detector)
    catalog = pictures_to_calibrate(options, category)
    source = data_name(options.images, category)
    name = "-".join(filter(None, ("recalibrate", category, source)))
    tags = {"dfm.job": "recalibrate", "dfm.category": category, RECALIBRATED_FROM: parent.uri}
    registered = parent.name if options.registered_model == "auto" else options.registered_model
    parameters = {
        "resolved_model": parent.uri,
        "resolved_images": options.images,
        "resolved_category": category,
        "resolved_registered_model": registered or "none",
        "resolved_reason": options.reason,
        "resolved_force": options.force,
        **as_given(options),
    }
    settings = settings_of(Model.load(parent.uri))
    with run_of(name, tags, experiment) as run:
        mlflow.set_tag(RECALIBRATED_FROM, parent.uri)  # in a run taken over too
        log_parameters(run.info.run_id, parameters)
        made = _calibrate(parent, category, catalog, settings, options)

        def log_elsewhere(run_id: str) -> None:
            log_parameters(run_id, parameters)
            _log(made, catalog)

        with kept_on_outage(run.info.run_id, name, tags, log_elsewhere):
            uri = version_uri = _log(made, catalog)
            # Last: a run that failed before this point leaves the registry as it was.
            if registered not in (None, "none"):
                about = tags_of(made.detector, made.metrics) | {RECALIBRATED_FROM: parent.uri}
                version = register(uri, registered, " ".join(made.sentences), about)
                version_uri = f"models:/{registered}/{version}"
    return RecalibrateResult(
        run.info.run_id, uri, version_uri, made.detector, made.metrics, made.sentences
    )


def calibrate_on(
    detector: AnomalyDetector, category: str, catalog: Catalog
) -> tuple[AnomalyDetector, str]:
    """Calibrate a class on the pictures of a catalog, without a run."""
    extraction = detector.extractor.extract([i.path for i in catalog.train], progress="extracting")
    items = kept_items(catalog.train, extraction, "calibration")
    keys = keys_of(extraction)
    _refuse_fitted(detector, items, keys)
    now = detector.recalibrated(category, extraction.features, keys, extraction.light)
    j = detector.class_names.index(category)
    before, after = (d.classes[j].calibration for d in (detector, now))
    _refuse_low(before, after)
    figures = _figures(before, after, now.options.fpr)
    return now, _comparison(category, before, after, figures)


def _refuse_low(before: Calibration, after: Calibration) -> None:
    if (share := seems_fitted(before.p_value(after.scores), before.n_groups)) is not None:
        raise DataError(
            f"About {share:.0%} of the pictures score as low as pictures that the model was fitted "
            "to: the threshold would be far too low; give pictures that it never saw."
        )


def _calibrate(
    parent: _Parent,
    category: str,
    catalog: Catalog,
    settings: dict[str, Any],
    options: RecalibrateOptions,
) -> _Recalibrated:
    old = parent.detector
    paths = [item.path for item in catalog.train]
    extraction, seconds = timed(lambda: old.extractor.extract(paths, progress="extracting"))
    catalog.note(extraction.looks(paths))
    items = kept_items(catalog.train, extraction, "calibration")
    keys = keys_of(extraction)
    _refuse_fitted(old, items, keys)
    detector = old.recalibrated(category, extraction.features, keys, extraction.light)
    before, now = (d.classes[d.class_names.index(category)].calibration for d in (old, detector))
    metrics = _figures(before, now, detector.options.fpr)
    metrics |= {"extract_seconds": seconds, "n_unreadable": float(len(extraction.errors))}
    metrics["n_unused_files"] = float(catalog.account.n_unused)
    sentences = [detector.calibration_sentence(), _comparison(category, before, now, metrics)]
    sentences += _novelty(before, now, options)
    for sentence in sentences:
        _logger.info(sentence, extra=RESULT)
    return _Recalibrated(parent.uri, detector, items, metrics, sentences, settings)


def _log(made: _Recalibrated, catalog: Catalog) -> str:
    """Log everything to the active run; gives the URI of the model, which is not registered."""
    log_dataset(catalog, "calibration")
    info = log_model(
        made.detector,
        name="model",
        input_example=example_of(made.items[0], made.detector.extractor),
        metadata={"calibration": made.sentences[0], "recalibrated_from": made.origin},
        model_config=made.settings,
    )
    mlflow.log_metrics(made.metrics, model_id=info.model_id)
    mlflow.set_tags({"calibration": " ".join(made.sentences), MLFLOW_RUN_NOTE: made.sentences[1]})
    log_golden(made.detector, made.items, [])
    return info.model_uri


def _load(uri: str) -> _Parent:
    """Load a model, and name the version that an alias points to at this moment."""
    found = resolve(uri)
    detector = load_model(found.uri)
    name = found.version.name if found.version else detector.options.model_name
    return _Parent(found.uri, name, detector)


def _category(given: str, detector: AnomalyDetector) -> str:
    names = detector.class_names
    if given == "auto" and len(names) > 1:
        raise ConfigError(
            f"The model has the categories {', '.join(names)}: name the one that the pictures "
            "belong to, as category=<name>."
        )
    if given not in ("auto", *names):
        raise ConfigError(f"The model has no category {given}: it has {', '.join(names)}.")
    return names[0] if given == "auto" else given


def _figures(before: Calibration, now: Calibration, fpr: float) -> dict[str, float]:
    flagged = is_anomaly(before.p_value(now.scores), before.effective_fpr(fpr))
    return {
        "threshold": now.threshold(fpr),
        "threshold_before": before.threshold(fpr),
        "effective_fpr": now.effective_fpr(fpr),
        "n_calibration": float(len(now.scores)),
        "flagged_before": float(np.mean(flagged)),
    }


def _comparison(
    category: str, before: Calibration, now: Calibration, metrics: dict[str, float]
) -> str:
    """Say how the threshold moves and why."""
    return (
        f"The threshold of {category} was {metrics['threshold_before']:.4g}, which flags "
        f"{metrics['flagged_before']:.1%} of the {len(now.scores)} new good pictures, and is "
        f"{metrics['threshold']:.4g} now."
    )


def _refuse_fitted(old: AnomalyDetector, items: list[Item], keys: list[str]) -> None:
    """Refuse pictures with the contents of those that the model was fitted to."""
    known = [item for item, key in zip(items, keys, strict=True) if key[:DIGITS] in old.fitted]
    if known:
        raise DataError(
            f"The model was fitted to {len(known)} of {len(items)} pictures, such as "
            f"{known[0].path}: they score far too low to calibrate on; give pictures that it never "
            "saw."
        )


def _novelty(before: Calibration, now: Calibration, options: RecalibrateOptions) -> list[str]:
    """Refuse pictures that score as fitted ones do, or say why they are taken all the same."""
    share = seems_fitted(before.p_value(now.scores), before.n_groups)
    if share is None:
        return []
    found = (
        f"About {share:.0%} of the pictures score as low as pictures that the model was fitted to, "
        "and new ones score so more rarely than once in 1,000 times"
    )
    if not options.force:
        raise DataError(
            f"{found}: the threshold would be far too low. Give pictures that it never saw; if "
            "these are, and a darker lamp or a calmer surface is the reason, say so with "
            "force=true and a reason."
        )
    return [f"{found}; taken all the same: {options.reason}"]
