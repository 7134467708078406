"""A scored test set: one row an image, and the metrics of it."""

import re

import numpy as np
import pandas as pd

from dfm_mlflow.core.metrics import auroc, decision_metrics, ranking_metrics
from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.images.catalog import GOOD, Item


def score_items(
    detector: AnomalyDetector, items: list[Item], progress: str | None = "scoring"
) -> pd.DataFrame:
    """Score labelled pictures; unreadable ones keep a row with their error.

    Returns
    -------
    DataFrame
        Columns ``path``, ``category``, ``label``, ``defective``, then those of
        :meth:`AnomalyDetector.score` without the map.
    """
    scores = detector.score([i.path for i in items], on_error="report", progress=progress)
    about = pd.DataFrame(
        {
            "path": [str(i.path) for i in items],
            "category": [i.category for i in items],
            "label": [i.label for i in items],
            "defective": [i.label != GOOD for i in items],
        }
    )
    return pd.concat([about, scores.drop(columns="anomaly_map")], axis=1)


def image_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Compute every image-level metric of a scored test set.

    AUROC per defect compares its images with the good ones of the same category; with several
    categories the names are ``image_auroc/<category>`` and ``image_auroc/<category>/<defect>``.

    Parameters
    ----------
    table : DataFrame
        From :func:`score_items`; rows with an error are left out.
    """
    table = table[table["error"].isna()]
    if table.empty:
        return {}
    defective = table["defective"].to_numpy(bool)
    metrics = ranking_metrics(defective, table["anomaly_score"].to_numpy())
    metrics |= decision_metrics(defective, table["is_anomaly"].to_numpy(bool))
    named = {f"image_auroc_{column}": auroc(defective, table[column].to_numpy())
             for column in ("fre", "nll")}  # fmt: skip
    several = table["category"].nunique() > 1
    for category, rows in table.groupby("category"):
        prefix = f"image_auroc/{metric_name(str(category))}" if several else "image_auroc"
        if several:
            named[prefix] = _auroc(rows)
        for label in sorted(set(rows["label"]) - {GOOD}):
            of_defect = rows[rows["label"].isin([GOOD, label])]
            named[f"{prefix}/{metric_name(label)}"] = _auroc(of_defect)
    return metrics | {name: value for name, value in named.items() if value is not None}


def metric_name(text: str) -> str:
    """Replace what MLflow does not allow in a metric's name."""
    return re.sub(r"[^\w\-. ]", "_", text)


def _auroc(rows: pd.DataFrame) -> float | None:
    return auroc(rows["defective"].to_numpy(bool), np.asarray(rows["anomaly_score"]))
