"""From a category's pictures to a run with metrics, a report and a registered model."""

import io
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import torch
from mlflow.models import Model
from PIL import Image

import dfm_mlflow
from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import located, pictures_to_fit
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.augment import Trial
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.images.depth import BYTES
from dfm_mlflow.jobs.fit import Trained, fit_pictures
from dfm_mlflow.mlflow_plugin.flavor import log_model
from dfm_mlflow.network.builder import build_extractor, load_roi
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.registry.golden import log_golden
from dfm_mlflow.scores.copies import find_copies
from dfm_mlflow.scores.evaluation import (
    Evaluation,
    counted,
    image_metrics,
    measured_sentence,
    metric_name,
    pixel_metrics_of,
    score_items,
)
from dfm_mlflow.scores.operating_points import costs_of, operating_points, recall_metrics
from dfm_mlflow.scores.training import TrainingLook, look_at_training
from dfm_mlflow.scores.verdict import RESULT, Verdict, say, verdict_of
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.kept import kept_on_outage
from dfm_mlflow.tracking.registration import register, tags_of
from dfm_mlflow.tracking.run import (
    as_given,
    data_name,
    log_dataset,
    log_parameters,
    log_results,
    log_training,
    run_of,
    timed,
)

if TYPE_CHECKING:
    from dfm_mlflow.tuning.drawn import SyntheticRecall

# Options that tell runs of one preset apart.
_NAMED = (
    "layers",
    "pooling",
    "image_size",
    "resize",
    "subspace",
    "pca_level",
    "score",
    "aggregate",
    "blur",
    "normalize",
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind.

    Attributes
    ----------
    run_id : str
    model_uri : str
        Of the logged model.
    registered_version : str or None
        None where none was registered.
    detector : AnomalyDetector
    metrics : dict of str to float
    sentences : list of str
        What calibration and measurement say in words.
    verdict : Verdict
        What the model decides, and what is wrong with that.
    """

    run_id: str
    model_uri: str
    registered_version: str | None
    detector: AnomalyDetector
    metrics: dict[str, float]
    sentences: list[str]
    verdict: Verdict

    @property
    def registered_uri(self) -> str:
        """The registered version, or the logged model where none was registered."""
        name = self.detector.options.model_name
        return f"models:/{name}/{self.registered_version}" if name else self.model_uri


@dataclass(frozen=True)
class Further:
    """What a run and its version get beside what every training gives them."""

    tags: dict[str, str] = field(default_factory=dict)  # of both
    files: dict[str, str] = field(default_factory=dict)  # texts that the run holds, by their names


@dataclass(frozen=True)
class Fitted:
    """A detector before it is logged, with all that is known of it."""

    detector: AnomalyDetector
    items: list[Item]  # that it was fitted on
    held_out: HeldOutScores  # of `items`
    evaluation: Evaluation  # of the test pictures
    look: TrainingLook
    drawn: "SyntheticRecall | None"
    metrics: dict[str, float]  # of the run; whoever knows more may add to them
    sentences: list[str]
    trial: Trial  # of copies
    verdict: Verdict


def train(options: Options | None = None, *, experiment: str = AUTO, **values: Any) -> TrainResult:
    """Fit, evaluate, log and register a detector, in the active or a new MLflow run.

    Parameters
    ----------
    options : Options, optional
        As given by the user; ``auto`` is resolved here.
    experiment : str
        Name of the experiment of a new run; ``auto`` is what MLflow was told, else the category.
    **values
        The options by name, instead of `options` or beside them, as
        :class:`~dfm_mlflow.config.Options` declares them: ``data="/pictures/bottle"``,
        ``backbone="resnet18"``, ``fpr=0.01``, ``image_size=384``, ``layers=["layer2", "layer3"]``.

    Returns
    -------
    TrainResult
        With the detector, the run's id, the registered version and the verdict.

    Raises
    ------
    DfmError
        For options, data or weights that cannot be used. Nothing is registered then.

    Examples
    --------
    ::

        result = dfm_mlflow.train(data="/pictures/bottle", fpr=0.02)
        print(result.verdict.text, result.registered_uri)
    """
    given = {} if options is None else options.model_dump()
    options = Options.of(**given | values)
    options.resolve()  # refused before anybody looks at the data
    asked, options = as_given(options), located(options)
    resolved = options.resolve()
    if resolved.engine == "local":
        return _train(options, resolved, asked, experiment)
    from dfm_mlflow.spark.session import session_of

    with session_of():  # one for everything
        return _train(options, resolved, asked, experiment)


def _train(
    options: Options, resolved: Options, asked: dict[str, str], experiment: str
) -> TrainResult:
    roi = load_roi(
        resolved.roi, resolved.max_pixels
    )  # refused before gigabytes of pictures are fetched
    catalog = pictures_to_fit(resolved)
    extractor, weights, resolved = build_extractor(resolved, catalog.train, roi)
    name = _run_name(options, resolved)
    tags = {"dfm.job": "train", "dfm.category": resolved.category, "dfm.preset": resolved.preset}
    with run_of(name, tags, experiment) as run:
        log_parameters(run.info.run_id, asked)
        result = fit_and_register(
            run.info.run_id, name, tags, resolved, catalog, extractor, weights
        )
    if extractor.cache:
        extractor.cache.trim()
    return result


def fit_and_register(
    run_id: str,
    name: str,
    tags: dict[str, str],
    options: Options,
    catalog: Catalog,
    extractor: Extractor,
    weights: dict[str, str],
    further: Callable[[Fitted], Further] | None = None,
) -> TrainResult:
    """Fit, evaluate, log to the active run of this id, and register."""
    options = options.model_copy(update={"registered_model": options.model_name or "none"})
    known = _parameters(options, weights)
    for option in ("augment", "bits"):  # the pictures decide, and a parameter cannot change
        if getattr(options, option) == "auto":
            del known[f"resolved_{option}"]
    log_parameters(run_id, known)
    fitted = _fit(options, catalog, extractor, weights)
    parameters = _parameters(fitted.detector.options, weights)
    if (depth := fitted.detector.extractor.decoder.depth) is not None:
        parameters["resolved_bits"] = depth.bits

    more = Further() if further is None else further(fitted)

    def log_elsewhere(run_id: str) -> None:
        log_parameters(run_id, parameters)
        _log(fitted, catalog, more)

    with kept_on_outage(run_id, name, tags | more.tags, log_elsewhere):
        log_parameters(run_id, parameters)
        uri = _log(fitted, catalog, more)
        # Last: a run that failed before this point leaves the registry as it was.
        version = None
        if options.model_name:
            about = tags_of(fitted.detector, fitted.metrics) | more.tags
            version = register(uri, options.model_name, fitted.verdict.text, about)
    return TrainResult(
        run_id, uri, version, fitted.detector, fitted.metrics, fitted.sentences, fitted.verdict
    )


def _fit(
    options: Options, catalog: Catalog, extractor: Extractor, weights: dict[str, str]
) -> Fitted:
    trained = fit_pictures(options, catalog, extractor, weights)
    detector, fitted_on = trained.detector, trained.items
    _logger.info(detector.calibration_sentence(), extra=RESULT)
    evaluation, score_seconds = timed(lambda: score_items(detector, catalog.test))
    catalog.note(evaluation.looks())
    copies = find_copies(catalog)
    if options.test_copies == "leave_out":
        evaluation = evaluation.leaving_out(copies.left_out)
    look = look_at_training(
        options, catalog, fitted_on, trained.held_out, trained.groups, evaluation, copies
    )
    for warning in look.warnings:
        if warning != " ".join(look.concerns):  # which the verdict leads with
            _logger.warning(warning)
    table = evaluation.table
    metrics = _metrics(trained, catalog, evaluation, score_seconds)
    metrics["n_duplicates"] = len(copies.of)
    sentences = [detector.calibration_sentence(), *measured_sentence(detector, table)]
    if (depth := detector.extractor.decoder.depth) not in (None, BYTES):
        sentences.append(depth.sentence())
    drawn = _drawn(options, trained, detector.extractor, weights) if not len(table) else None
    if drawn is not None:
        metrics |= drawn.metrics()
        sentences.append(drawn.sentence())
    for sentence in sentences[1:]:
        _logger.info(sentence, extra=RESULT)
    read = counted(table)
    points = operating_points(detector, read, None if drawn is None else drawn.rates)
    metrics |= recall_metrics(points)
    verdict = verdict_of(detector, read, metrics, points, look.concerns)
    verdict = say(_logger, verdict, points, costs_of(options))
    return Fitted(
        detector,
        fitted_on,
        trained.held_out,
        evaluation,
        look,
        drawn,
        metrics,
        sentences,
        trained.trial,
        verdict,
    )


def _metrics(
    trained: Trained, catalog: Catalog, evaluation: Evaluation, score_seconds: float
) -> dict[str, float]:
    """Metrics of the test pictures, and what the run took and cost."""
    detector, table, n_train = trained.detector, evaluation.table, len(trained.items)
    extract_seconds, fit_seconds = trained.seconds
    metrics = image_metrics(table) | pixel_metrics_of(detector, catalog.test, evaluation)
    metrics |= facts_of(detector, table, n_train, len(trained.extraction.errors))
    metrics |= {"extract_seconds": extract_seconds, "fit_seconds": fit_seconds}
    metrics["n_unused_files"] = float(catalog.account.n_unused)
    n, seconds = (len(table), score_seconds) if len(table) else (n_train, extract_seconds)
    metrics["images_per_second"] = n / max(seconds, 1e-9)
    return metrics


def _drawn(
    options: Options, trained: Trained, extractor: Extractor, weights: dict[str, str]
) -> "SyntheticRecall | None":
    """What is found of drawn defects, where there are no real ones to test on."""
    if options.engine == "spark":
        _logger.info("No defects are drawn: the features stayed in Spark's executors.")
        return None
    from dfm_mlflow.tuning.drawn import synthetic_recall  # late: it draws

    return synthetic_recall(
        options, extractor, trained.extraction, trained.items, weights, trained.groups
    )


def _log(fitted: Fitted, catalog: Catalog, more: Further) -> str:
    """Log everything to the active run; gives the URI of the model, which is not registered."""
    dataset = log_dataset(catalog, "training")
    detector, metrics, sentences = fitted.detector, fitted.metrics, fitted.sentences
    info = log_model(
        detector,
        name="model",
        input_example=example_of(fitted.items[0], detector.extractor),
        metadata={"calibration": sentences[0]},
        validate_serving_input=False,  # it would load and warm the model for one picture
    )
    size = Model.load(info.model_uri).model_size_bytes
    assert size is not None  # save_model states it
    metrics["model_megabytes"] = size / 1e6
    metrics["peak_memory_megabytes"] = _peak_memory_megabytes()
    mlflow.log_metrics(metrics, model_id=info.model_id, dataset=dataset)
    mlflow.set_tag("calibration", " ".join(sentences))
    if fitted.trial.sentence:
        mlflow.set_tag("dfm.augment", fitted.trial.sentence)
    from dfm_mlflow.report.look import LookSection  # late: it draws

    look = LookSection(fitted.look, fitted.held_out, fitted.drawn)
    log_results(
        detector,
        catalog,
        fitted.evaluation,
        metrics,
        sentences,
        fitted.verdict,
        model_uri=info.model_uri,
        look=look,
    )
    log_training(fitted.look, info.model_uri)
    log_golden(detector, fitted.items, catalog.test)
    mlflow.set_tags(more.tags)
    for name, content in more.files.items():
        mlflow.log_text(content, name)
    return info.model_uri


def _run_name(given: Options, resolved: Options) -> str:
    """Say what tells a run from others: category, backbone, preset, data, what else was given."""
    data = data_name(resolved.data, resolved.category)
    beside = [f"{key}={value}" for key in _NAMED if (value := getattr(given, key)) != "auto"]
    parts = [resolved.category, resolved.backbone, resolved.preset, data, *beside]
    return "-".join(part for part in parts if part)[:250]


def _parameters(options: Options, weights: dict[str, str]) -> dict[str, object]:
    return {f"resolved_{name}": value for name, value in options.model_dump().items()} | {
        "weights_id": weights["id"],
        "weights_sha256": weights["sha256"] or "none",
        "dfm_mlflow_version": dfm_mlflow.__version__,
        "torch_version": torch.__version__,
        "torchvision_version": version_of("torchvision"),
    }


def facts_of(
    detector: AnomalyDetector, table: pd.DataFrame, n_train: int, n_bad: int
) -> dict[str, float]:
    """Give what is known without labels: thresholds and counts."""
    thresholds = detector.thresholds()
    facts = {
        "threshold": max(thresholds.values()),
        "effective_fpr": detector.effective_fpr(),
        "n_train": n_train,
        "n_test": len(counted(table)),
        "n_unreadable": n_bad + int(table["error"].notna().sum()),
        "n_components": detector.n_components,
    }
    if len(thresholds) > 1:
        facts |= {f"threshold/{metric_name(name)}": value for name, value in thresholds.items()}
    return facts


def example_of(item: Item, extractor: Extractor) -> pd.DataFrame:
    """Shrink the picture of an `item` to the input's size of an `extractor`, as PNG bytes."""
    image = Image.fromarray(extractor.read(item.path)).resize(extractor.size[::-1])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return pd.DataFrame({"image": [buffer.getvalue()]})


def _peak_memory_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
