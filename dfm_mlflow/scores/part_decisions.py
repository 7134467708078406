"""One decision for all pictures of a part, such as its views or its lights."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dfm_mlflow.core.calibration import is_anomaly
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector

# With their pandas dtypes.
PART_COLUMNS = {"part": "object", "part_p_value": "float64", "part_is_anomaly": "boolean"}


def part_decisions(
    detector: AnomalyDetector,
    table: pd.DataFrame,
    parts: Sequence[str],
    fpr: float | None = None,
) -> pd.DataFrame:
    """Decide on parts by the scores of their pictures.

    The p-value of a part of m pictures is m times the smallest of theirs, at most 1 (Bonferroni).
    If each picture's p-value keeps its promise, P(p <= u) <= u for good ones, so does the part's,
    whatever the pictures of a part have to do with each other: by the union bound P(m min p <= u)
    <= m u / m. Its smallest possible value is m times that of a picture, and a part is flagged at
    the larger one of that and the model's rate.
    """
    known = {m.name: m.calibration.smallest_p_value for m in detector.classes}
    of, names = pd.factorize(np.asarray(parts, dtype=object))
    m = np.bincount(of).astype(float)
    missing = np.bincount(of, weights=table["error"].notna()) > 0
    least, smallest = np.full(len(names), np.nan), np.zeros(len(names))
    np.fmin.at(least, of, table["p_value"].to_numpy(float))
    np.maximum.at(smallest, of, [known.get(name, 0.0) for name in table["predicted_class"]])
    p_value = np.minimum(1.0, m * least)
    limit = np.maximum(detector.options.fpr if fpr is None else fpr, np.minimum(1.0, m * smallest))
    flagged = np.asarray(is_anomaly(p_value, limit), dtype=bool)
    unknown = missing & ~flagged
    return pd.DataFrame(
        {
            "part": names[of],
            "part_p_value": np.where(unknown, np.nan, p_value)[of],
            "part_is_anomaly": pd.Series(flagged, dtype="boolean").mask(unknown).array[of],
        },
        index=table.index,
    )


def part_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Measure decisions on parts; a part is defective if one of its pictures is."""
    if "part" not in table:
        return {}
    parts = table.groupby("part").agg(
        defective=("defective", "any"), flagged=("part_is_anomaly", "first")
    )
    parts = parts[parts["flagged"].notna()]
    bad, flagged = parts["defective"].to_numpy(bool), parts["flagged"].to_numpy(bool)
    metrics = {"n_parts": float(len(parts))}
    if bad.any():
        metrics["part_recall"] = float(flagged[bad].mean())
    if not bad.all():
        metrics["part_false_positive_rate"] = float(flagged[~bad].mean())
    return metrics


def promise_of(detector: AnomalyDetector, parts: Sequence[str], fpr: float | None = None) -> str:
    """Say what the decision about parts promises."""
    counts = pd.Series(list(parts)).value_counts()
    calibrations = [model.calibration for model in detector.classes]
    smallest, most = max(c.smallest_p_value for c in calibrations), int(counts.max())
    of_each = (detector.options.fpr if fpr is None else fpr) / most
    rate = min(1.0, most * max(c.promised_fpr(of_each) for c in calibrations))
    sentence = (
        f"{len(counts)} parts of {int(counts.min())} to {most} pictures: a part's p-value is the "
        f"smallest of its pictures times their number, and at most {rate:.3g} of good parts are "
        "flagged"
    )
    if smallest > of_each:
        sentence += (
            f"; {most} pictures need p-values of {of_each:.3g}, and the calibration ends at "
            f"{smallest:.3g}: calibrate on more pictures"
        )
    return sentence + "."
