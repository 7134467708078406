"""A scored test set: one row an image, and the metrics of it."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dfm_mlflow.core.metrics import auroc, decision_metrics, ranking_metrics
from dfm_mlflow.core.pixel_metrics import pixel_metrics
from dfm_mlflow.core.ranking import precision_recall_curve, roc_curve
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.data.masks import fitted_mask
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.decision import is_estimate
from dfm_mlflow.detector.rows import Observation
from dfm_mlflow.errors import DfmError
from dfm_mlflow.images.read import Look
from dfm_mlflow.scores.part_decisions import part_decisions, part_metrics

# Where curves are logged, in per mille: closest where a line works. 82 steps.
_logger = logging.getLogger(__name__)
STEPS = np.r_[0:20, 20:100:5, 100:1001:20]


@dataclass(frozen=True)
class Evaluation:
    """A scored set of labelled pictures."""

    # One row a picture: ``path``, ``category``, ``label``, ``defective``, then the columns of
    # :meth:`AnomalyDetector.score` without the map.
    table: pd.DataFrame
    seen: dict[
        int, Observation
    ]  # anomaly map, size and calibration ranks of each row that could be read

    def leaving_out(self, reasons: Mapping[str, str]) -> "Evaluation":
        """Say of pictures, by path, why metrics leave them out; see :func:`counted`.

        By row, `reasons` say why.
        """
        table = self.table.assign(left_out=self.table["path"].map(dict(reasons)).astype(object))
        return Evaluation(table, self.seen)

    def looks(self) -> dict[str, Look]:
        """Digest and size of the pictures that were read from files, by their paths."""
        paths = self.table["path"]
        return {paths[i]: Look(o.digest, o.size) for i, o in self.seen.items() if o.digest}


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a scored set that metrics count: those that could be read and are not left out."""
    table = table[table["error"].isna()]
    return table[table["left_out"].isna()] if "left_out" in table else table


def without_labels(evaluation: Evaluation) -> Evaluation:
    """Give an `evaluation` whose pictures may be good or not."""
    table = evaluation.table.assign(label="unlabelled", defective=None)
    return Evaluation(table, evaluation.seen)


def score_items(
    detector: AnomalyDetector, items: Sequence[Item], progress: str | None = "scoring"
) -> Evaluation:
    """Score labelled pictures; unreadable ones keep a row with their error."""
    seen: dict[int, Observation] = {}
    scores = detector.score(
        [i.path for i in items],
        on_error="report",
        progress=progress,
        on_image=lambda i, o: seen.update({i: replace(o, map=o.map.cpu())}),
    )
    about = pd.DataFrame(
        {
            "path": [str(i.path) for i in items],
            "category": [i.category for i in items],
            "label": [i.label for i in items],
            "defective": [i.label != GOOD for i in items],
        }
    )
    table = pd.concat([about, scores.drop(columns="anomaly_map")], axis=1)
    if any(item.part for item in items):
        parts = [item.part or str(item.path) for item in items]
        table = table.join(part_decisions(detector, table, parts))
    return Evaluation(table, seen)


def pixel_metrics_of(
    detector: AnomalyDetector, items: Sequence[Item], evaluation: Evaluation
) -> dict[str, float]:
    """Pixel metrics at the size of the masks; empty where there is no mask at all.

    A defective picture without a mask is left out and counted as ``n_without_mask``.
    """
    if not any(item.mask for item in items):
        return {}
    usable = [
        i
        for i in counted(evaluation.table).index
        if items[i].label == GOOD or items[i].mask is not None
    ]

    missing = sum(item.label != GOOD and item.mask is None for item in items)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal missing
        for i in usable:
            seen = evaluation.seen[i]
            mask = np.zeros(seen.size, dtype=bool)
            if given := items[i].mask:
                try:
                    mask = fitted_mask(given, seen.size, items[i].path)
                except DfmError as error:
                    _logger.warning("A mask is not used and counts as missing: %s", error)
                    missing += items[i].label != GOOD
                    continue
            yield detector.full_map(seen.map, (mask.shape[0], mask.shape[1])).numpy(), mask

    metrics = pixel_metrics(pairs())
    return metrics | {"n_without_mask": float(missing)}


def image_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Compute every picture-level metric of a scored test set.

    Metrics of ranking are means over the categories that have good and defective pictures, since
    scores of different categories are on different scales. AUROC per defect compares its images
    with the good ones of the same category; with several categories the names are
    ``image_auroc/<category>`` and ``image_auroc/<category>/<defect>``, and
    ``category_accuracy/good`` and ``category_accuracy/defective`` are the shares of images that are
    judged as their own category.
    """
    table = counted(table)
    if table.empty:
        return {}
    defective = table["defective"].to_numpy(bool)
    metrics = _mean_over_categories(table)
    metrics |= decision_metrics(defective, table["is_anomaly"].to_numpy(bool))
    metrics |= part_metrics(table)
    named: dict[str, float | None] = {}
    several = table["category"].nunique() > 1
    if several and "predicted_class" in table:
        right = (table["predicted_class"] == table["category"]).to_numpy(bool)
        for kind, mine in (("good", ~defective), ("defective", defective)):
            named[f"category_accuracy/{kind}"] = float(right[mine].mean()) if mine.any() else None
    for category, rows in table.groupby("category"):
        prefix = f"image_auroc/{metric_name(str(category))}" if several else "image_auroc"
        if several:
            named[prefix] = _auroc(rows)
        for label in sorted(set(rows["label"]) - {GOOD}):
            of_defect = rows[rows["label"].isin([GOOD, label])]
            named[f"{prefix}/{metric_name(label)}"] = _auroc(of_defect)
    return metrics | {name: value for name, value in named.items() if value is not None}


def _mean_over_categories(table: pd.DataFrame) -> dict[str, float]:
    """Metrics of ranking in each category, and their means over those that have them."""
    parts = []
    for _, rows in table.groupby("category"):
        truth = rows["defective"].to_numpy(bool)
        part = ranking_metrics(truth, rows["anomaly_score"].to_numpy())
        for column in ("fre", "nll") if part else ():
            part[f"image_auroc_{column}"] = float(auroc(truth, rows[column].to_numpy()) or 0.0)
        parts += [part] if part else []
    names = parts[0] if parts else ()
    return {name: float(np.mean([part[name] for part in parts])) for name in names}


def defect_table(table: pd.DataFrame) -> pd.DataFrame:
    """Count what is found of each kind of defect, and flagged of the good pictures."""
    rows = []
    table = counted(table)
    for category, of_category in table.groupby("category", sort=False):
        for label in [GOOD, *sorted(set(of_category["label"]) - {GOOD})]:
            mine = of_category[of_category["label"] == label]
            against = of_category[of_category["label"].isin([GOOD, label])]
            if len(mine):
                rows.append(
                    {
                        "category": category,
                        "label": label,
                        "n": len(mine),
                        "flagged": int(mine["is_anomaly"].astype(bool).sum()),
                        "auroc": None if label == GOOD else _auroc(against),
                    }
                )
    return pd.DataFrame(rows, columns=["category", "label", "n", "flagged", "auroc"])


def curve_points(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Take curves at :data:`STEPS`, for metrics whose step is the horizontal axis in per mille.

    Gives (82,).
    """
    table = table[table["error"].isna()]
    at, truth = STEPS / 1000, table["defective"].to_numpy(bool)
    parts = [_ranking_curves(rows, at) for _, rows in table.groupby("category")]
    parts = [part for part in parts if part]
    curves = {n: np.mean([p[n] for p in parts], axis=0) for n in parts[0]} if parts else {}
    if not truth.all():
        p_values = np.sort(table.loc[~truth, "p_value"].to_numpy(float))
        measured = np.searchsorted(p_values, at + 1e-12, side="right") / len(p_values)
        curves["curve/measured_false_positive_rate"] = measured
    return curves


def _ranking_curves(table: pd.DataFrame, at: np.ndarray) -> dict[str, np.ndarray]:
    """Curves of one category; none where it lacks good or defective pictures."""
    truth, scores = table["defective"].to_numpy(bool), table["anomaly_score"].to_numpy()
    if truth.all() or not truth.any():
        return {}
    false_rate, true_rate = roc_curve(truth, scores)
    reached = np.searchsorted(false_rate, at + 1e-12, side="right") - 1
    precision, recall = precision_recall_curve(truth, scores)
    best = np.maximum.accumulate(precision[:-1])  # recall falls; without its end at 0
    least = np.searchsorted(-recall[:-1], -(at - 1e-12), side="right") - 1
    return {
        "curve/roc_true_positive_rate": true_rate[reached],
        "curve/precision_at_recall": best[least],
    }


def measured_sentence(detector: AnomalyDetector, table: pd.DataFrame) -> list[str]:
    """Hold the promise against the good test pictures; no sentence where there are none."""
    table = counted(table)
    good = table[table["label"] == GOOD]
    if good.empty:
        return []
    flagged = int(good["is_anomaly"].astype(bool).sum())
    promised = f"at most {detector.promised_fpr():.2%} is promised"
    if is_estimate(detector.classes, detector.options.fpr):
        promised = f"an estimated {detector.promised_fpr():.2%} is promised"
    return [
        f"On {len(good)} good test pictures {flagged} are flagged, a measured rate of "
        f"{flagged / len(good):.2%} where {promised}."
    ]


def metric_name(text: str) -> str:
    """Replace by ``_`` what MLflow does not allow of a `text` in a metric's name."""
    return re.sub(r"[^\w\-. ]", "_", text)


def _auroc(rows: pd.DataFrame) -> float | None:
    return auroc(rows["defective"].to_numpy(bool), np.asarray(rows["anomaly_score"]))
