"""Who a version is compared with, and the test pictures that all of them score."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from mlflow import MlflowClient, MlflowException

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import pictures_to_judge
from dfm_mlflow.errors import DfmError, PromotionError
from dfm_mlflow.registry.aliases import version_of
from dfm_mlflow.registry.candidate import Candidate, load_candidate
from dfm_mlflow.registry.comparison_gates import COMPARISON, THRESHOLD
from dfm_mlflow.registry.runs import read_scores
from dfm_mlflow.scores.evaluation import score_items
from dfm_mlflow.tracking.run import log_dataset

# Figure of a promotion by which the best ever are known, for each comparison.
_FIGURES = {COMPARISON: "image_auroc", THRESHOLD: "recall"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scored:
    """The same test pictures under several versions."""

    catalog: Catalog | None  # none where they are those that the challenger's run recorded
    # One for each candidate, in their order; rows that one could not read are in none.
    tables: list[pd.DataFrame]
    source: str  # which pictures these are, in words


@dataclass(frozen=True, eq=False)
class Rival:
    """A version that a challenger is compared with."""

    candidate: Candidate
    by: tuple[str, ...]  # what it is compared by
    best: bool  # whether it does not hold the alias, but is the best that ever did


def best_ever(
    client: MlflowClient, model: str, alias: str, but: Sequence[str]
) -> dict[str, list[str]]:
    """Versions that ever held an alias with the best AUROC, and with the best recall, of then."""
    known: dict[str, dict[str, float]] = {}
    for version in client.search_model_versions(f"name='{model}'"):
        text = version.tags.get(f"dfm.promotion.{alias}.figures")
        try:
            known[str(version.version)] = dict(json.loads(text)) if text else {}
        except (ValueError, TypeError):  # somebody else's tag
            continue
    found: dict[str, list[str]] = {}
    for name, figure in _FIGURES.items():
        ranked = sorted((-float(f[figure]), int(v)) for v, f in known.items() if figure in f)
        if ranked and str(ranked[0][1]) not in but:
            found.setdefault(str(ranked[0][1]), []).append(name)
    return found


def load_rivals(
    client: MlflowClient, options: PromoteOptions, before: str | None
) -> tuple[list[Rival], str]:
    """Load the version that holds the alias, then the best that ever did."""
    if before is None:
        return [], ""
    try:
        holder = load_candidate(client, version_of(client, options.model, before))
    except PromotionError as error:
        return [], str(error)
    rivals = [Rival(holder, tuple(_FIGURES), best=False)]
    best = best_ever(client, options.model, options.alias, (before, options.version))
    for number, names in best.items():
        try:
            version = load_candidate(client, version_of(client, options.model, number))
        except PromotionError as error:
            _logger.warning("The best that ever held %s is not compared: %s", options.alias, error)
        else:
            rivals.append(Rival(version, tuple(names), best=True))
    return rivals, ""


def score_all(
    options: PromoteOptions, challenger: Candidate, rivals: Sequence[Rival]
) -> tuple[Scored | None, str]:
    """Score test pictures with all, or read what the challenger's run recorded of its own."""
    own = options.data == "auto"
    detector = challenger.detector
    try:
        catalog = pictures_to_judge(options, detector.options, detector.class_names)
        if not catalog.test:
            log_dataset(catalog, "promotion")
            return None, ""
        everybody = (challenger, *(rival.candidate for rival in rivals))
        evaluations = [score_items(c.detector, catalog.test) for c in everybody]
    except DfmError as error:
        if not own:
            raise  # what the user named cannot be read
        return _recorded(challenger), str(error)
    catalog.note(evaluations[0].looks())
    log_dataset(catalog, "promotion")
    tables = [evaluation.table for evaluation in evaluations]
    read = pd.concat([t["error"].isna() for t in tables], axis=1).all(axis=1)
    source = "its own test pictures" if own else "the given pictures"
    return Scored(catalog, [t[read] for t in tables], source), ""


def _recorded(challenger: Candidate) -> Scored | None:
    try:
        run = MlflowClient().get_run(str(challenger.version.run_id))
        table = read_scores(run)
    except (MlflowException, DfmError):
        return None
    if {"p_value", "predicted_class", "is_anomaly"} - set(table):
        return None
    return Scored(None, [table], "its own test pictures, as its run recorded them")
