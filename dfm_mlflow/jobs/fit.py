"""Good pictures to a detector, on this machine or on Spark's executors."""

import logging
import time
from dataclasses import dataclass

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.groups import groups_of
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.augment import Trial, extract_to_fit, try_some
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.errors import DataError
from dfm_mlflow.network.extraction import Extraction
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.tracking.run import timed

MAX_BAD_SHARE = 0.05  # of the training pictures; above it something is wrong with the folder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trained:
    """A detector, and what is known of the pictures that it was fitted to."""

    detector: AnomalyDetector
    held_out: HeldOutScores  # of `items`
    items: list[Item]  # that it was fitted to
    groups: list[str] | None  # declared group of each
    extraction: Extraction  # of all training pictures, those that could not be read among them
    trial: Trial  # of copies
    seconds: tuple[float, float]  # of the extraction and of the fit


def fit_pictures(
    options: Options, catalog: Catalog, extractor: Extractor, weights: dict[str, str]
) -> Trained:
    """Extract the training pictures of a catalog and fit a detector to them."""
    fit = _fit_on_spark if options.engine == "spark" else _fit_here
    return fit(options, catalog, extractor, weights)


def _fit_here(
    options: Options, catalog: Catalog, extractor: Extractor, weights: dict[str, str]
) -> Trained:
    paths, names = [i.path for i in catalog.train], [i.category for i in catalog.train]
    (known, extraction, trial), extract_seconds = timed(
        lambda: extract_to_fit(extractor, paths, names, options, progress="extracting")
    )
    catalog.note(extraction.looks(paths))
    fitted_on = kept_items(catalog.train, extraction)
    groups = groups_of(options.group_by, fitted_on)
    (detector, held_out), fit_seconds = timed(
        lambda: AnomalyDetector.fit_held_out(
            options,
            known,
            extraction,
            [i.category for i in fitted_on],
            weights,
            groups,
        )
    )
    seconds = extract_seconds, fit_seconds
    return Trained(detector, held_out, fitted_on, groups, extraction, trial, seconds)


def _fit_on_spark(
    options: Options, catalog: Catalog, extractor: Extractor, weights: dict[str, str]
) -> Trained:
    from dfm_mlflow.spark.fit import fit_on_spark

    items = catalog.train
    trial = try_some(extractor, [i.path for i in items], [i.category for i in items], options)
    options = options.model_copy(update={"augment": trial.augment})
    start = time.perf_counter()
    extracted = start

    known: list[str] | None = None

    def groups(extraction: Extraction) -> list[str] | None:
        nonlocal extracted, known
        extracted = time.perf_counter()
        catalog.note(extraction.looks([item.path for item in items]))
        known = groups_of(options.group_by, kept_items(items, extraction))
        return known

    detector, held_out, extraction = fit_on_spark(options, extractor, items, weights, groups)
    seconds = extracted - start, time.perf_counter() - extracted
    kept = [items[i] for i in extraction.kept]
    return Trained(detector, held_out, kept, known, extraction, trial, seconds)


def kept_items(items: list[Item], extraction: Extraction, purpose: str = "training") -> list[Item]:
    """Leave out pictures that cannot be read, with a warning for each."""
    for i, why in extraction.errors.items():
        _logger.warning("Left out %s: %s", items[i].path, why)
    share = len(extraction.errors) / len(items)
    if share > MAX_BAD_SHARE:
        i, why = min(extraction.errors.items())
        raise DataError(
            f"{len(extraction.errors)} of {len(items)} {purpose} pictures cannot be read, more "
            f"than {MAX_BAD_SHARE:.0%}; the first is {items[i].path}: {why} Replace or remove them."
        )
    return [items[i] for i in extraction.kept]
