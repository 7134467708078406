"""What new pictures show of a model: metrics where they are labelled, drift in any case."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dfm_mlflow.core.drift import Drift, measure_drift
from dfm_mlflow.data.item import GOOD, Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DataError
from dfm_mlflow.scores.evaluation import (
    Evaluation,
    counted,
    image_metrics,
    measured_sentence,
    pixel_metrics_of,
    score_items,
    without_labels,
)
from dfm_mlflow.scores.operating_points import OperatingPoint, operating_points, recall_metrics
from dfm_mlflow.scores.verdict import Verdict, said_rate, verdict_of


@dataclass(frozen=True)
class Measured:
    """What pictures show of a model."""

    evaluation: Evaluation  # without labels where they are not known
    metrics: dict[str, float]
    sentences: list[str]  # the same in words
    verdict: Verdict  # what the model decides, and what is wrong with that
    points: list[OperatingPoint]  # what it would decide at other rates


def measure(detector: AnomalyDetector, items: Sequence[Item], labelled: bool) -> Measured:
    """Score pictures, and say what that shows: in metrics, and in words."""
    start = time.perf_counter()
    evaluation = score_items(detector, items)
    seconds = time.perf_counter() - start
    metrics = {"images_per_second": len(items) / max(seconds, 1e-9)}
    metrics |= _counts(evaluation, labelled)
    sentences = [detector.calibration_sentence()]
    if labelled:
        metrics |= image_metrics(evaluation.table)
        metrics |= pixel_metrics_of(detector, items, evaluation)
        sentences += measured_sentence(detector, evaluation.table)
    drift = drift_of(detector, evaluation, labelled)
    if drift is not None:
        metrics |= {
            "drift_flagged": drift.flagged,
            "drift_ks": drift.statistic,
            "drift_appearance": drift.appearance,
            "drift_light": drift.light,
            "drift_significance": drift.significance,
        }
        sentences.append(drift_sentence(drift, detector))
    thresholds = detector.thresholds().values()
    metrics |= {"threshold": max(thresholds), "effective_fpr": detector.effective_fpr()}
    known = evaluation if labelled else without_labels(evaluation)
    read = counted(known.table)
    points = operating_points(detector, read)
    metrics |= recall_metrics(points)
    verdict = verdict_of(detector, read, metrics, points)
    return Measured(known, metrics, sentences, verdict, points)


def drift_sentence(drift: Drift, detector: AnomalyDetector) -> str:
    """Say of a `drift` whether new pictures look like those of the calibration of a `detector`."""
    unlikely = drift.significance < 0.01
    verdict = (
        "they differ from the calibration's good pictures: look at camera, lamp and product"
        if unlikely
        else "they look like the calibration's good pictures"
    )
    return (
        f"{drift.flagged:.1%} of the pictures are flagged where {said_rate(detector)} is "
        f"promised for good ones; small p-values are up to "
        f"{drift.statistic:.2f} too frequent (Kolmogorov-Smirnov, one-sided), and "
        f"{_appearance(drift, detector)}{_light(drift)}; significance "
        f"{drift.significance:.2g}: {verdict}."
    )


def _appearance(drift: Drift, detector: AnomalyDetector) -> str:
    if detector.rule == 1:
        return (
            "leading coordinates are not compared, since this model of format 1 holds those of "
            "pictures that it was fitted to (train it again to compare them)"
        )
    return f"leading coordinates lie up to {drift.appearance:.2f} apart (Mann-Whitney)"


def _light(drift: Drift) -> str:
    """Say how often one of the new pictures is darker, or brighter, than one of the calibration."""
    if drift.light == 0:
        return ""
    word = "darker" if drift.light < 0 else "brighter"
    return f", and a new picture is {word} than an old one in {(1 + abs(drift.light)) / 2:.0%}"


def _counts(evaluation: Evaluation, labelled: bool) -> dict[str, float]:
    read = evaluation.table["error"].isna()
    if not read.any():
        raise DataError(
            f"None of {len(read)} pictures can be read, the first because: "
            f"{evaluation.table['error'].iloc[0]}"
        )
    key = "n_test" if labelled else "n_images"
    return {key: float(read.sum()), "n_unreadable": float((~read).sum())}


def drift_of(
    detector: AnomalyDetector, evaluation: Evaluation, labelled: bool = False
) -> Drift | None:
    """Compare scored pictures with the good ones of the calibration, each in its own category."""
    table = evaluation.table[evaluation.table["error"].isna()]
    if labelled:  # known defects are no drift
        table = table[table["label"] == GOOD]
    if table.empty:
        return None
    ranks = np.stack([evaluation.seen[i].calibration_ranks for i in table.index])
    if detector.rule == 1:  # its coordinates are of pictures that it was fitted to
        ranks = np.full_like(ranks, np.nan)
    light = np.array([evaluation.seen[i].light for i in table.index])
    return drift_of_rows(detector, table, ranks, light)


def drift_of_rows(
    detector: AnomalyDetector,
    read: pd.DataFrame,
    ranks: np.ndarray | None = None,
    light: np.ndarray | None = None,
) -> Drift:
    """Compare scored rows with the calibration, each in the category that it was judged as.

    Shapes: ranks (n, l); light (n,).
    """
    judged_as = read["predicted_class"].to_numpy(str)
    sizes = {c.name: c.calibration.n_groups for c in detector.classes}
    return measure_drift(
        cautious_p_values(detector, read["anomaly_score"].to_numpy(float), judged_as),
        read["is_anomaly"].to_numpy(np.bool_),
        np.full((len(read), 1), np.nan) if ranks is None else ranks,
        np.array([sizes[name] for name in judged_as]),
        judged_as,
        {c.name: c.correlation for c in detector.classes if c.correlation is not None},
        light,
    )


def cautious_p_values(
    detector: AnomalyDetector, scores: np.ndarray, judged_as: np.ndarray
) -> np.ndarray:
    """P-values too large rather than estimated: with others drift would alarm too often.

    Shapes: scores (n,); judged_as (n,), str; gives (n,) float64, of
    :meth:`Calibration.cautious_p_value`.
    """
    p_values = np.empty(len(scores))
    for c in detector.classes:
        mine = judged_as == c.name
        p_values[mine] = c.calibration.cautious_p_value(scores[mine])
    return p_values
