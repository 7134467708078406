"""Curves of scores that rank pictures, and the areas under them.

scikit-learn's values (the tests compare them with it), without the second and a half of processor
time that it takes to import ``sklearn.metrics``, a tenth of a small training.
"""

import numpy as np


def counts_above(defective: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count what is flagged at each threshold, from none to all.

    Shapes: defective (n,) bool; scores (n,); gives good, bad (m + 1,) int64.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    bad = np.concatenate([[0], np.cumsum(defective[order], dtype=np.int64)[ends]])
    return np.concatenate([[0], ends + 1]) - bad, bad


def roc_curve(defective: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Receiver operating characteristic of both kinds of pictures.

    Shapes: defective (n,) bool; scores (n,); gives false_rate, true_rate (m + 1,) float64, from 0
    to 1, ascending: one point a different score, none left out.
    """
    good, bad = counts_above(defective, scores)
    return good / good[-1], bad / bad[-1]


def precision_recall_curve(
    defective: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each threshold, the lowest first.

    Shapes: defective (n,) bool; scores (n,); gives precision, recall (m + 1,) float64, one point a
    different score, then precision 1 at recall 0.
    """
    good, bad = (counts[1:][::-1] for counts in counts_above(defective, scores))
    return np.append(bad / (good + bad), 1.0), np.append(bad / bad[0], 0.0)


def area_under_roc(defective: np.ndarray, scores: np.ndarray) -> float:
    """Chance that a defective picture scores above a good one; equal scores count half.

    Shapes: defective (n,) bool; scores (n,).
    """
    good, bad = counts_above(defective, scores)
    twice = np.sum(np.diff(good) * (bad[1:] + bad[:-1]))  # in whole numbers: exact
    return float(twice / (2 * good[-1] * bad[-1]))


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Mean precision over the steps of recall.

    Shapes: precision, recall (m + 1,).
    """
    return float(-np.sum(np.diff(recall) * precision[:-1]))
