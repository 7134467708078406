"""Thresholds from held-out good images alone: conformal p-values.

The p-value of a score is ``(1 + #{held-out good scores at least as large}) / (n + 1)``
(Vovk et al., Algorithmic Learning in a Random World, 2005; Bates et al., arXiv 2104.08279): for a
new good image, exchangeable with the held-out ones, ``P(p <= a) <= a``.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Held-out scores of the good images of one class.

    Attributes
    ----------
    scores : ndarray of shape (n,), float64
        Ascending.
    """

    scores: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> "Calibration":
        """Calibrate on held-out scores in any order."""
        return cls(np.sort(np.asarray(scores, dtype=np.float64)))

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """Share of held-out good images that score at least as high, never 0.

        Parameters
        ----------
        scores : ndarray of shape (m,)

        Returns
        -------
        ndarray of shape (m,), float64
            In ``[1 / (n + 1), 1]``.
        """
        n = len(self.scores)
        return (1 + n - np.searchsorted(self.scores, scores, side="left")) / (n + 1)

    def effective_fpr(self, fpr: float) -> float:
        """The false-positive rate that n images can promise: ``max(fpr, 1 / (n + 1))``."""
        return max(fpr, 1 / (len(self.scores) + 1))

    def threshold(self, fpr: float) -> float:
        """The score above which ``p_value <= effective_fpr(fpr)``, and at which it is not."""
        n = len(self.scores)
        # p <= f  <=>  #{held-out >= s} <= f (n + 1) - 1; the small term undoes rounding.
        most = math.floor(self.effective_fpr(fpr) * (n + 1) * (1 + 1e-12)) - 1
        return float(self.scores[n - 1 - most]) if most < n else -math.inf


def images_needed(fpr: float) -> int:
    """How many held-out images promise a false-positive rate: ``ceil(1 / fpr) - 1``."""
    return math.ceil(1 / fpr * (1 - 1e-12)) - 1


def is_anomaly(p_value: np.ndarray, effective_fpr: np.ndarray | float) -> np.ndarray:
    """Decide, with the tolerance that :meth:`Calibration.threshold` has."""
    return p_value <= effective_fpr * (1 + 1e-12)


def combine_classes(p_values: np.ndarray, likelihoods: np.ndarray) -> np.ndarray:
    """Choose for each image the class it fits best.

    Parameters
    ----------
    p_values : ndarray of shape (m, n_classes)
        P-value of each image under each class.
    likelihoods : ndarray of shape (m, n_classes)
        Log-likelihoods, comparable across classes; they decide between equal p-values.

    Returns
    -------
    ndarray of shape (m,), int
        Column of the class with the largest p-value.
    """
    best = p_values == p_values.max(axis=1, keepdims=True)
    return np.where(best, likelihoods, -np.inf).argmax(axis=1)
