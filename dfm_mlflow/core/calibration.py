"""Thresholds from held-out good images alone: conformal p-values.

The p-value of a score is ``(1 + #{held-out good scores at least as large}) / (n + 1)``
(Vovk et al., Algorithmic Learning in a Random World, 2005; Bates et al., arXiv 2104.08279): for a
new good image, exchangeable with the held-out ones, ``P(p <= a) <= a``.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_TAIL_SHARE = 0.2  # of the held-out scores describe the tail,
_TAIL_LEAST = 10  # and at least this many of them
_REACH = 10  # a tail extends p-values by this factor below 1 / (n + 1)


@dataclass(frozen=True)
class Tail:
    """Generalised Pareto tail: ``P(score > start + y) = share (1 + shape y / scale)^(-1/shape)``.

    Attributes
    ----------
    start : float
        Score at which it begins.
    share : float
        P-value there.
    scale, shape : float
        Shape 0 is the exponential; it is never negative, so that no score is impossible.
    """

    start: float
    share: float
    scale: float
    shape: float

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """P-values of scores above :attr:`start`.

        Parameters
        ----------
        scores : ndarray of shape (m,)

        Returns
        -------
        ndarray of shape (m,), float64
        """
        beyond = np.maximum(scores - self.start, 0) / self.scale
        if self.shape == 0:
            return self.share * np.exp(-beyond)
        return self.share * (1 + self.shape * beyond) ** (-1 / self.shape)

    def score(self, p: float) -> float:
        """Score whose p-value is `p`, which is at most :attr:`share`."""
        ratio = self.share / p
        beyond = math.log(ratio) if self.shape == 0 else (ratio**self.shape - 1) / self.shape
        return self.start + self.scale * beyond


def fit_tail(ascending: np.ndarray) -> Tail | None:
    """Fit a tail to the largest scores by probability-weighted moments.

    Source: Hosking & Wallis, Technometrics 29, 1987; for few exceedances they are steadier than
    maximum likelihood.

    Parameters
    ----------
    ascending : ndarray of shape (n,)

    Returns
    -------
    Tail or None
        None for fewer than 20 scores or equal ones.
    """
    n = len(ascending)
    m = max(_TAIL_LEAST, int(_TAIL_SHARE * n))
    if n < 2 * m:
        return None
    start = float(ascending[n - m - 1])
    beyond = ascending[n - m :] - start
    mean = float(beyond.mean())
    if not mean > 0:
        return None
    rank = (np.arange(1, m + 1) - 0.35) / m
    weighted = float(((1 - rank) * beyond).mean())
    shape = 2 - mean / (mean - 2 * weighted) if mean > 2 * weighted else -1.0
    scale = 2 * mean * weighted / (mean - 2 * weighted) if shape > 0 else mean
    return Tail(start, (m + 1) / (n + 1), scale, max(shape, 0.0))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Held-out scores of the good images of one class.

    Attributes
    ----------
    scores : ndarray of shape (n,), float64
        Ascending.
    n_folds : int
        Of the cross-fitting that gave them.
    method : {"empirical", "gpd"}
        What lies beyond the largest of them.
    """

    scores: np.ndarray
    n_folds: int = 0
    method: str = "empirical"

    @classmethod
    def of(cls, scores: np.ndarray, n_folds: int = 0, method: str = "empirical") -> "Calibration":
        """Calibrate on held-out scores in any order.

        Parameters
        ----------
        scores : array-like of shape (n,)
        n_folds : int
            Of the cross-fitting that gave them; 0 for pictures that were never fitted.
        method : {"empirical", "gpd"}

        Returns
        -------
        Calibration
        """
        return cls(np.sort(np.asarray(scores, dtype=np.float64)), n_folds, method)

    @cached_property
    def tail(self) -> Tail | None:
        """Fitted tail, or None where the method is empirical or the scores are too few."""
        return fit_tail(self.scores) if self.method == "gpd" else None

    @property
    def smallest_p_value(self) -> float:
        """No score has a smaller one."""
        return 1 / (len(self.scores) + 1) / (_REACH if self.tail else 1)

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """Share of held-out good images that score at least as high, never 0.

        Parameters
        ----------
        scores : ndarray of shape (m,)

        Returns
        -------
        ndarray of shape (m,), float64
            In ``[1 / (n + 1), 1]``; with a tail down to a tenth of that.
        """
        n = len(self.scores)
        p = (1 + n - np.searchsorted(self.scores, scores, side="left")) / (n + 1)
        if self.tail:
            beyond = np.asarray(scores) > self.tail.start
            p = np.where(beyond, self.tail.p_value(scores), p)
        return np.maximum(p, self.smallest_p_value)

    def effective_fpr(self, fpr: float) -> float:
        """The rate that n images can promise where `fpr` is asked for: ``max(fpr, 1 / (n + 1))``.

        With a tail the second is a tenth of that.
        """
        return max(fpr, self.smallest_p_value)

    def threshold(self, fpr: float) -> float:
        """The score above which ``p_value <= effective_fpr(fpr)``, and at which it is not.

        Parameters
        ----------
        fpr : float
            False-positive rate, in (0, 1).

        Returns
        -------
        float
            Minus infinity where the rate is so large that every score is above it.
        """
        n, fpr = len(self.scores), self.effective_fpr(fpr)
        if self.tail and fpr < self.tail.share:
            return self.tail.score(fpr)
        # p <= f  <=>  #{held-out >= s} <= f (n + 1) - 1; the small term undoes rounding.
        most = math.floor(fpr * (n + 1) * (1 + 1e-12)) - 1
        return float(self.scores[n - 1 - most]) if most < n else -math.inf


def images_needed(fpr: float, tail: Tail | None = None) -> int:
    """How many held-out images promise a false-positive rate of `fpr`: ``ceil(1 / fpr) - 1``.

    With a `tail` a tenth of that, but no fewer than it takes to fit one.
    """
    if tail:
        return max(2 * _TAIL_LEAST, math.ceil(1 / fpr / _REACH * (1 - 1e-12)) - 1)
    return math.ceil(1 / fpr * (1 - 1e-12)) - 1


def is_anomaly(p_value: np.ndarray, effective_fpr: np.ndarray | float) -> np.ndarray:
    """Decide, with the tolerance that :meth:`Calibration.threshold` has.

    Parameters
    ----------
    p_value : ndarray of shape (m,) or float
    effective_fpr : ndarray of shape (m,) or float
        Of :meth:`Calibration.effective_fpr`.

    Returns
    -------
    ndarray of shape (m,), bool
    """
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
    winner: np.ndarray = np.where(best, likelihoods, -np.inf).argmax(axis=1)
    return winner


@dataclass(frozen=True)
class Drift:
    """How far new images are from the good ones of the calibration.

    Attributes
    ----------
    flagged : float
        Share of the images that are flagged; good ones keep the promised rate.
    statistic : float
        Kolmogorov-Smirnov distance of the p-values from the uniform distribution, in [0, 1].
    appearance : float
        The largest such distance of the places of a leading coordinate.
    significance : float
        Probability of distances as unlikely as the most unlikely of these, for good images.
    """

    flagged: float
    statistic: float
    appearance: float
    significance: float


def measure_drift(
    p_values: np.ndarray, flagged: np.ndarray, places: np.ndarray, n_calibration: int
) -> Drift:
    """Compare new, unlabelled images with the good ones of the calibration.

    P-values show what the subspace does not explain. A lamp that fades moves pictures within it, as
    good ones vary in brightness too; that shows in the leading coordinates, where a whole day of
    pictures sits on one side.

    Parameters
    ----------
    p_values : ndarray of shape (m,)
    flagged : ndarray of shape (m,), bool
    places : ndarray of shape (m, l)
        Place of each image among those of the calibration in each leading coordinate, or NaN.
    n_calibration : int
        Good images of the calibration: the fewer, the larger a distance may be by chance.

    Returns
    -------
    Drift
    """
    columns = [p_values, *places.T]
    columns = [column[~np.isnan(column)] for column in columns]
    columns = [column for column in columns if len(column)]
    from scipy.stats import kstest, kstwo  # 50 MB, which no scoring needs

    distances = [float(kstest(column, "uniform").statistic) for column in columns]
    significance = min(
        float(kstwo.sf(distance, _effective_size(len(column), n_calibration)))
        for distance, column in zip(distances, columns, strict=True)
    )
    return Drift(
        float(np.mean(flagged)),
        distances[0],
        max(distances[1:], default=0.0),
        min(1.0, significance * len(columns)),  # Bonferroni
    )


def _effective_size(m: int, n: int) -> int:
    """Size of the sample whose distance from uniform is that of m ranks among n images."""
    return max(1, round(m * n / (m + n)))
