"""Image-level metrics of a scored test set."""

import numpy as np

from dfm_mlflow.core.ranking import area_under_roc, average_precision, precision_recall_curve


def auroc(defective: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve, or None where one of the two kinds is missing.

    Shapes: defective (n,) bool; scores (n,).
    """
    if defective.all() or not defective.any():
        return None
    return area_under_roc(defective, scores)


def ranking_metrics(defective: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics that need no threshold.

    ``image_f1_max`` takes the best threshold on these very images and is optimistic; it is there
    because published tables report it.

    Shapes: defective (n,) bool; scores (n,).
    """
    area = auroc(defective, scores)
    if area is None:
        return {}
    precision, recall = precision_recall_curve(defective, scores)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return {
        "image_auroc": area,
        "image_average_precision": average_precision(precision, recall),
        "image_f1_max": float(f1.max()),
    }


def decision_metrics(defective: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """Metrics at the calibrated threshold; those whose denominator is 0 are left out.

    Without defective pictures there is neither precision nor F1, which would be 0 or nothing by the
    false alarms alone.

    ``false_positive_rate`` is the line's overkill, ``false_negative_rate`` its escapes.

    Shapes: defective, flagged (n,) bool.
    """
    hits = int((defective & flagged).sum())
    false_alarms = int((~defective & flagged).sum())
    misses = int((defective & ~flagged).sum())
    passes = int((~defective & ~flagged).sum())
    ratios = {
        "image_f1": (2 * hits, 2 * hits + false_alarms + misses),
        "precision": (hits, hits + false_alarms),
    }
    if not defective.any():
        ratios = {}
    ratios |= {
        "recall": (hits, hits + misses),
        "false_positive_rate": (false_alarms, false_alarms + passes),
        "false_negative_rate": (misses, hits + misses),
    }
    return {name: a / b for name, (a, b) in ratios.items() if b}
